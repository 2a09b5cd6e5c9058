"""Views of fewer modalities than the data have."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.errors import RecipeError, nearest
from limbeck.randomness import uniform
from limbeck.transforms.base import CONFIG, Inputs, Keys, RandomTransform, Rate, Seeds, Transform, tensor, zeroed


@dataclass(frozen=True, config=CONFIG)
class Subset(Transform):
    """Keeps the modalities `keep` and sets all other columns of the view to zero, in training and in evaluation."""

    keep: Keys

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        return {key: x if key in self.keep else torch.zeros_like(tensor(x, key)) for key, x in inputs.items()}

    def names(self) -> tuple[str, ...]:
        return self.keep


@dataclass(frozen=True, config=CONFIG)
class ModalityDropout(RandomTransform):
    """Sets whole modalities of a sample to zero, never all of them.

    Without `rate` every non-empty subset of the modalities is equally likely to be kept. With a rate (one number, or
    one per modality) each is dropped on its own with that probability, given that not all are: for a non-empty set,
    P(kept) is proportional to the product of (1 - rate) over the kept and of the rates over the dropped ones.

    Args:
        rate: None, a number in [0, 1], or numbers by column (0 for the others).
        keys: the modalities, at most 16; omitted: all columns of the view.
        mask: the name of a further column, bool [batch, modalities] in the order of `keys`, True where kept. A model
            whose forward takes `present` gets it by View("image", "sound", present="kept",
            transforms=[ModalityDropout(mask="kept")]).
    """

    rate: Rate | dict[str, Rate] | None = None
    keys: Keys | None = None
    mask: str | None = None

    @model_validator(mode="after")
    def _settled(self) -> ModalityDropout:
        if self.keys or isinstance(self.rate, float):
            self._rates(self.keys or ("every modality",))
        return self

    def adds(self) -> tuple[str, ...]:
        return (self.mask,) if self.mask else ()

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*(self.keys or ()), *(self.rate if isinstance(self.rate, dict) else ()))))

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        modalities = self.keys or tuple(inputs)
        changed = {}
        if seeds is None:
            first = tensor(inputs[modalities[0]], modalities[0])
            kept = torch.ones(len(first), len(modalities), dtype=torch.bool, device=first.device)
        else:
            kept = self._kept(seeds, modalities)
            for key, stays in zip(modalities, kept.unbind(1)):
                changed[key] = zeroed(tensor(inputs[key], key), ~stays)
        return inputs | changed | ({self.mask: kept} if self.mask else {})

    def _kept(self, seeds: Seeds, modalities: tuple[str, ...]) -> Bool[Tensor, "batch modalities"]:
        if len(modalities) > 16:
            raise RecipeError(f"modality-dropout of {len(modalities)} columns; it goes up to 16. Name some: keys=[...]")
        subsets = torch.arange(1, 2 ** len(modalities), device=seeds.device)
        members = (subsets[:, None] >> torch.arange(len(modalities), device=seeds.device)) & 1 == 1
        rates = torch.tensor(self._rates(modalities), dtype=torch.float64, device=seeds.device)
        reached = torch.where(members, 1 - rates, rates).prod(1).cumsum(0)
        drawn = uniform(self.seeds(seeds)).double() * reached[-1]
        return members[torch.searchsorted(reached, drawn, right=True)]

    def _rates(self, modalities: tuple[str, ...]) -> list[float]:
        if self.rate is None:
            return [0.5] * len(modalities)  # a fair coin for each makes all subsets equally likely
        if isinstance(self.rate, float):
            rates = [self.rate] * len(modalities)
        else:
            rates = [self.rate.get(key, 0.0) for key in modalities]
            if stray := [key for key in self.rate if key not in modalities]:
                raise RecipeError(f"modality-dropout has a rate for '{stray[0]}'. {nearest(stray[0], modalities)}")
        if min(rates) == 1:
            raise RecipeError(
                "modality-dropout with rate 1 for every modality would leave nothing; needed is one below 1."
            )
        return rates
