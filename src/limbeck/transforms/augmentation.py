"""Views through any augmentation that a user has."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.sources import import_from
from limbeck.transforms.base import CONFIG, Inputs, RandomTransform, Seeds


@dataclass(frozen=True, config=CONFIG)
class Apply(RandomTransform):
    """Applies any augmentation to one column, under generators that are seeded per sample and put back afterwards.

    While it runs, torch's generator of the column's device (and torch's CPU one, Python's and NumPy's global ones) are
    seeded from the sample, so a run repeats and nothing else is disturbed.

    Args:
        function: takes a sample (or the batch) and gives what takes its place; in a recipe `module:function`.
        key: the column.
        each: `sample`: called once per sample, results of one shape; `batch`: called once on the whole column. A
            batch is seeded as a whole, so what a sample is given then depends on its neighbours and on the cut.
    """

    function: Annotated[Any, BeforeValidator(lambda f: import_from(f, "augmentation") if isinstance(f, str) else f)]
    key: str
    each: Literal["sample", "batch"] = "sample"

    @model_validator(mode="after")
    def _is_called(self) -> Apply:
        if not callable(self.function):
            raise ValueError(f"function is a {type(self.function).__name__}; needed is something that can be called.")
        return self

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        if seeds is None:
            return dict(inputs)
        x, own = inputs[self.key], self.seeds(seeds, self.key).tolist()
        device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        with _generators_put_back(device):
            if self.each == "batch":
                _seed_generators(sum(own), device)
                return inputs | {self.key: self.function(x)}
            results = [self._one(sample, seed, device) for sample, seed in zip(x, own)]
        shapes = {tuple(y.shape) for y in results if isinstance(y, Tensor)}
        if len(shapes) > 1:
            raise RecipeError(
                f"apply to '{self.key}': samples came back with the shapes {sorted(shapes)}; needed is one for all."
            )
        return inputs | {self.key: torch.stack(results) if shapes else results}

    def _one(self, sample: Any, seed: int, device: torch.device) -> Any:
        _seed_generators(seed, device)
        return self.function(sample)

    def names(self) -> tuple[str, ...]:
        return (self.key,)

    def spec(self) -> dict[str, Any]:
        """As others; a function without an address (a lambda, an object) is named, but cannot be read back."""
        return super().spec() | {"function": _address(self.function)}


def _address(function: Callable[..., Any]) -> str:
    named = hasattr(function, "__qualname__")
    kind = function if named else type(function)
    return f"{kind.__module__}:{kind.__qualname__}" + ("" if named else "()")


@contextmanager
def _generators_put_back(device: torch.device) -> Iterator[None]:
    of_python, of_numpy = random.getstate(), np.random.get_state()
    on = {} if device.type == "cpu" else {"device_type": device.type}
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device], **on):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _seed_generators(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed would reach the generators of every device
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)
