"""How well generated pictures fit their prompts: the cosine of the two in the space of a CLIP.

CLIPScore(picture, text) = w max(cos(E_picture, E_text), 0). Source: Hessel et al. 2021, "CLIPScore", equation 1, where w = 2.5 and the model is
ViT-B/32; as generators are reported w is 100, which is the default here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.evaluation.checks import CLIP
from limbeck.evaluation.pictures import Judge, Pictures

_TEXTS = ("prompt", "text", "caption")


def clip_score(
    pictures: Float[Tensor, "batch dims"], texts: Float[Tensor, "batch dims"], scale: float = 100.0
) -> Float[Tensor, "batch"]:
    """w max(cos, 0) of embeddings of any length, w = `scale`."""
    return scale * F.cosine_similarity(pictures.double(), texts.double(), dim=1).clamp(min=0)


class Clip:
    """A CLIP of transformers, by its folder or hub name: pictures in [0, 1] and texts to embeddings.

    Raises:
        RecipeError: it cannot be had, or is no such model.
    """

    def __init__(self, place: str = CLIP, device: torch.device | str = "cpu") -> None:
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise RecipeError("the check clip-score needs transformers: pip install 'limbeck[diffusion]'") from error
        from limbeck.shipping.graph import quietly

        try:
            with quietly():
                self.model = transformers.AutoModel.from_pretrained(place).to(device).eval().requires_grad_(False)
                self.tokens = transformers.AutoTokenizer.from_pretrained(place)
                processor = transformers.AutoImageProcessor.from_pretrained(place)
        except (OSError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RecipeError(
                f"the check clip-score needs a CLIP, and '{place}' is neither a folder here nor to be had from the hub ({first}). Fetch one where there "
                "is a network (hf download openai/clip-vit-base-patch32 --local-dir FOLDER), and say where it lies: evaluate.clip-score.model=FOLDER"
            ) from error
        if not hasattr(self.model.config, "vision_config") or not hasattr(self.model.config, "text_config"):
            raise RecipeError(
                f"the check clip-score needs a model of pictures and texts, such as {CLIP}, and '{place}' is a {type(self.model).__name__}."
            )
        self.place, self.device = place, device
        self.side = int(self.model.config.vision_config.image_size)
        self.longest = int(self.model.config.text_config.max_position_embeddings)
        self.mean, self.std = (
            torch.tensor(v, device=device)[:, None, None] for v in (processor.image_mean, processor.image_std)
        )

    @torch.no_grad()
    def __call__(self, pictures: Pictures, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of both, [batch, dims]."""
        asked = self.tokens(
            list(texts), padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.device)
        found = self.model(pixel_values=self.prepared(pictures.to(self.device)), **asked)
        return found.image_embeds, found.text_embeds

    def prepared(self, pictures: Pictures) -> Pictures:
        """The shorter side to the model's (bicubic), the middle of the longer one, standardised as it was trained."""
        high, wide = pictures.shape[-2:]
        ratio = self.side / min(high, wide)
        size = [max(self.side, round(side * ratio)) for side in (high, wide)]
        if size != [high, wide]:
            pictures = F.interpolate(pictures, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(
                0, 1
            )
        top, left = ((side - self.side) // 2 for side in size)
        return (pictures[..., top : top + self.side, left : left + self.side] - self.mean) / self.std


class Fit(Judge):
    """The mean score of generated pictures with their prompts, and beside it that of the real ones."""

    check = "clip-score"

    def __init__(self, clip: Clip, scale: float = 100.0, samples: int | None = None, batch_size: int = 64) -> None:
        super().__init__(samples, batch_size)
        self.clip, self.scale = clip, scale

    def look(self, pictures: Pictures, batch: Mapping[str, Any]) -> Float[Tensor, "batch"]:
        return clip_score(*self.clip(pictures, texts_of(batch)), self.scale)

    def figures(self, world: World) -> tuple[dict[str, float], dict[str, Any]]:
        made, real = self.gathered(world)
        facts = {"model": self.clip.place, "scale": self.scale, "generated": len(made)}
        return {"clip_score": float(made.mean())}, {"clip_score": facts | {"of_the_data": float(real.mean())}}


def texts_of(batch: Mapping[str, Any]) -> list[str]:
    """The prompts: the column of a usual name, else the only one that holds texts.

    Raises:
        RecipeError: there is none, or it is not clear which.
    """
    found = {
        name: value for name, value in batch.items() if isinstance(value, list) and value and isinstance(value[0], str)
    }
    name = next((name for name in _TEXTS if name in found), next(iter(found), None) if len(found) == 1 else None)
    if name is None:
        raise RecipeError(
            f"the check clip-score compares pictures with their prompts, and {'several columns hold texts' if found else 'no column holds texts'} "
            f"({', '.join(found or map(str, batch))}). Call one prompt, or leave the check out of evaluate."
        )
    return list(map(str, found[name]))
