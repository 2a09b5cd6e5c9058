"""What a pretrained network expects of its input: pictures standardised, texts as tokens. Nothing is drawn at random."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from limbeck.errors import RecipeError
from limbeck.language.packing import attention_of
from limbeck.transforms.base import CONFIG, Inputs, Seeds, Transform, tensor


@dataclass(frozen=True, config=CONFIG, kw_only=True)
class Standardise(Transform):
    """(x - mean) / std for each channel of pictures in [0, 1], `[batch, channels, height, width]`.

    Args:
        key: the column.
        mean, std: one value per channel; a picture of one channel is repeated to as many.
        size: height and width to scale to first (bilinear, antialiased), where pictures have others.
    """

    key: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Standardise:
        if len(self.mean) != len(self.std) or not self.mean or not all(self.std):
            raise ValueError("mean and std need one value per channel each, std none that is 0.")
        return self

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        x = tensor(inputs[self.key], self.key, floating=True)
        channels = len(self.mean)
        if x.dim() != 4 or x.shape[1] not in (1, channels):
            raise RecipeError(
                f"column '{self.key}' holds {list(x.shape[1:])} per sample; the model is shown pictures of {channels} channels."
            )
        if self.size is not None and tuple(x.shape[2:]) != tuple(self.size):
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return inputs | {self.key: (x.expand(-1, channels, -1, -1) - mean) / std}

    def names(self) -> tuple[str, ...]:
        return (self.key,)


@dataclass(frozen=True, config=CONFIG, kw_only=True)
class Tokenise(Transform):
    """Texts as the token numbers of a transformers tokenizer, padded to the longest of the batch.

    Args:
        key: the column of texts; it holds token numbers afterwards, int64 `[batch, tokens]`.
        tokenizer: the folder (or hub name) of the tokenizer.
        mask: the column that is made: 1 for tokens, 0 for padding.
        longest: the most tokens; longer texts are cut.
    """

    key: str
    tokenizer: str
    mask: str
    longest: int | None = Field(default=None, ge=1)

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        texts: Any = inputs[self.key]
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise RecipeError(f"column '{self.key}' does not hold texts, one per sample, and cannot be tokenised.")
        reader = _tokenizer(self.tokenizer)
        most = min(self.longest or 10**9, int(reader.model_max_length))
        made = reader(
            list(texts),
            padding=True,
            truncation=most < 10**9,
            max_length=most if most < 10**9 else None,
            return_tensors="pt",
        )
        return inputs | {self.key: made["input_ids"], self.mask: made["attention_mask"]}

    def names(self) -> tuple[str, ...]:
        return (self.key,)

    def adds(self) -> tuple[str, ...]:
        return (self.mask,)


@dataclass(frozen=True, config=CONFIG, kw_only=True)
class Documents(Transform):
    """From which document each token of a packed row is, turned into which earlier tokens it may look at.

    Args:
        key: the column `segment` [batch, tokens]; it holds the mask [batch, 1, tokens, tokens] afterwards.
        added: whether the mask is added to the scores (0 and the smallest number), as eager attention wants it, in
            place of truth values, as scaled_dot_product_attention does.
    """

    key: str
    added: bool = False

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        segment = tensor(inputs[self.key], self.key)
        return inputs | {self.key: attention_of(segment, torch.float32 if self.added else torch.bool)}

    def names(self) -> tuple[str, ...]:
        return (self.key,)


@lru_cache(maxsize=8)
def _tokenizer(place: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise RecipeError("a view that tokenises needs transformers: pip install 'limbeck[text]'") from error
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise RecipeError(f"there is no tokenizer in {place}: {str(error).splitlines()[0]}") from error
