"""The Frechet distance between generated and real pictures in the features of a network that looks at pictures.

With Inception v3 and its published weights it is the Frechet Inception distance (Heusel et al. 2017) and is called `fid`; with any other
network it is called after that, `frechet_CLIPModel`, for figures of different networks have nothing to do with each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.actors import Actor
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.evaluation.generation import frechet
from limbeck.evaluation.pictures import Judge, Pictures
from limbeck.models import inception
from limbeck.models.adapters.columns import last_linear
from limbeck.views import View

WEIGHTS = (".pth", ".pt", ".safetensors")
_GIVEN = ("image_embeds", "pooler_output", "embedding", "features")


class Eye:
    """Pictures in [0, 1] to features.

    Args:
        classifier: None: Inception v3, its weights fetched where they are published; a file: its weights; else a network, named as a student
            is: a folder or hub name of transformers (a ViT, DINO, or the vision half of a CLIP), a run, `module:attribute`. It is
            shown pictures as its own folder says, else as they are.
        layer: the place of the features in a network (`path`, or `path:input`). None: of a CLIP its embedding, of a transformer its pooled
            output, of a classifier what its last linear layer is given. Maps are averaged over places, tokens over their positions.

    Raises:
        RecipeError: there is no such network or place, or the weights cannot be had.
    """

    def __init__(
        self, classifier: str | None = None, layer: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        file = classifier is not None and Path(classifier).suffix in WEIGHTS
        self.is_inception = classifier is None or file
        self.source = classifier or inception.URL
        network: nn.Module | str = inception.load(classifier) if self.is_inception else _network(str(classifier))
        self.actor = Actor(network, view="image" if self.is_inception else None)
        self.actor.model.to(device).eval().requires_grad_(False)
        self.name = getattr(self.actor.model, "of", type(self.actor.model).__name__)
        self.layer = layer
        if layer is not None:
            self.actor.tap("seen", layer)

    @property
    def figure(self) -> str:
        """What the distance is called."""
        return "fid" if self.is_inception and self.layer is None else f"frechet_{self.name}"

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> Float[Tensor, "batch dims"]:
        device = next((p.device for p in self.actor.model.parameters()), pictures.device)
        batch = {"image": pictures.to(device), "id": torch.arange(len(pictures), device=device)}
        if self.actor.view is None and self.actor.source.view_for is None:
            self.actor.view = View("image")
        view = self.actor.look_at({"image": "image"})
        column = next(iter((*view.keys, *view.named.values())))
        if (
            self.layer is None
            and "embedding" not in self.actor.paths
            and not self._gives({column: batch["image"], **batch})
        ):
            path = last_linear(self.actor.model)
            if path is None:
                raise RecipeError(
                    f"{self.source} has no linear layer to read features from: say where they are, evaluate.fid.layer=path:input"
                )
            self.actor.tap("embedding", f"{path}:input")
        heard = self.actor({column: batch["image"], **batch})
        found = (
            heard["seen"] if self.layer is not None else next(heard[n] for n in ("embedding", *_GIVEN) if n in heard)
        )
        found = found[0] if isinstance(found, (tuple, list)) else found
        return (found.flatten(2).mean(2) if found.dim() > 3 else found.mean(1) if found.dim() == 3 else found).float()

    def _gives(self, batch: Mapping[str, Any]) -> bool:
        """Whether it gives features by itself."""
        heard = self.actor(batch)
        return any(name in heard and heard[name] is not None for name in _GIVEN)


class Distance(Judge):
    """Features of what is generated and of what is real, each picture in 256 levels, and their distance."""

    check = "fid"

    def __init__(self, eye: Eye, samples: int | None = None, batch_size: int = 64) -> None:
        super().__init__(samples, batch_size)
        self.eye = eye

    def look(self, pictures: Pictures, batch: Mapping[str, Any]) -> Float[Tensor, "batch dims"]:
        return self.eye(pictures)

    def figures(self, world: World) -> tuple[dict[str, float], dict[str, Any]]:
        made, real = self.gathered(world)
        distance = frechet(made, real) if min(len(made), len(real)) > 1 else math.nan
        facts = {"features": self.eye.source, "dims": made.shape[1], "generated": len(made), "real": len(real)}
        return {self.eye.figure: distance}, {self.eye.figure: facts}


class _Vision(nn.Module):
    """The half of a CLIP that looks at pictures, to the space it shares with texts."""

    family = "of_transformers"  # whose folder says how pictures are prepared

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.of = type(model).__name__
        self.config, self.main_input_name = model.config.vision_config, "pixel_values"
        self.config._name_or_path = model.config._name_or_path
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)}


def _network(classifier: str) -> nn.Module | str:
    """Where a network lies that was named on the hub; of one of pictures and texts the half that looks at pictures."""
    place = classifier if ":" in classifier or Path(classifier).exists() else _fetched(classifier)
    config = Path(place) / "config.json"
    if not config.exists() or not {"vision_config", "text_config"} <= json.loads(config.read_text()).keys():
        return place
    import transformers

    from limbeck.shipping.graph import quietly

    with quietly():
        return _Vision(transformers.AutoModel.from_pretrained(place))


def _fetched(name: str) -> str:
    """The folder into which a network of the hub is fetched, or was before.

    Raises:
        RecipeError: it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (ModuleNotFoundError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"the check fid is to look at pictures with '{name}', which is no path here, not module:attribute, and not to be had from the hub ({first}). "
            "Say where it lies: evaluate.fid.classifier=FOLDER"
        ) from error
