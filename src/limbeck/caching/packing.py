"""How a signal lies on disk: whole in fewer bits, or the most likely classes with what remains for the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from limbeck.errors import RecipeError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
Packed = dict[str, Tensor]


@dataclass(frozen=True)
class Whole:
    """Every value of a signal, floating-point ones as `dtype`; whole numbers and flags as they are."""

    shape: tuple[int, ...]
    given: str
    dtype: str

    def pack(self, value: Shaped[Tensor, "batch ..."]) -> Packed:
        """What is stored of a batch."""
        return {"": value.to(DTYPES[self.dtype]) if value.is_floating_point() else value}

    def unpack(self, packed: Packed) -> Shaped[Tensor, "batch ..."]:
        """The signal again, in the type in which the teacher gave it."""
        return packed[""].to(getattr(torch, self.given))

    def spec(self) -> dict[str, Any]:
        """How `cache.json` spells it."""
        return {"shape": list(self.shape), "given": self.given, "dtype": self.dtype}


@dataclass(frozen=True)
class Top:
    """The `k` largest of C log-probabilities, their classes, and the log of the mass of all others.

    The mass that remains is stored exactly (in fp32, summed over the others and not taken as 1 - sum, which would
    cancel). Read again, it is spread evenly over the C - k others, and the whole is normalised, so that the
    probabilities sum to 1 to the last bits of fp32 whatever the storage rounded: the ranking within the tail is lost,
    its mass is not. The signal that comes back is log-probabilities, which differ from logits by one number per
    sample, so every loss of softmax(logits / T) reads them alike.

    Args:
        shape: of one sample's logits.
        given: the type in which the teacher gave them.
        dtype: of the stored log-probabilities.
        k: how many classes, below C.
        dim: the dimension of the classes in a batch: -1, or 1 for maps.
    """

    shape: tuple[int, ...]
    given: str
    dtype: str
    k: int
    dim: int = -1

    @property
    def classes(self) -> int:
        """C."""
        return self.shape[self.dim - 1 if self.dim > 0 else self.dim]

    def pack(self, value: Float[Tensor, "batch ..."]) -> Packed:
        """`""`: log-probabilities, `class`: whose they are, `rest`: the log of what remains; classes come last."""
        logits = value.movedim(self.dim, -1)
        log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        top, classes = log_p.topk(self.k, dim=-1)
        rest = log_p.scatter(-1, classes, -math.inf).logsumexp(-1)
        return {"": top.to(DTYPES[self.dtype]), "class": classes.to(torch.int32), "rest": rest.float()}

    def unpack(self, packed: Packed) -> Float[Tensor, "batch ..."]:
        """Log-probabilities of all classes, in the place and type of the logits."""
        share = packed["rest"] - math.log(self.classes - self.k)
        whole = share.unsqueeze(-1).repeat(*[1] * share.dim(), self.classes)
        whole = whole.scatter(-1, packed["class"].long(), packed[""].float())
        return whole.log_softmax(-1).movedim(-1, self.dim).to(getattr(torch, self.given))

    def spec(self) -> dict[str, Any]:
        """How `cache.json` spells it."""
        own = {"shape": list(self.shape), "given": self.given, "dtype": self.dtype}
        return own | {"top_k": self.k, "dim": self.dim}


Packing = Whole | Top


def of(value: Tensor, name: str, dtype: str, top_k: int | str, segmentation: bool = False) -> Packing:
    """How a signal like `value` is stored; `top_k` concerns signals called logits that have more classes than that.

    Raises:
        RecipeError: a signal that is no tensor.
    """
    if not isinstance(value, Tensor):
        raise RecipeError(f"the teacher's '{name}' is a {type(value).__name__}; stored are tensors, a row per sample.")
    shape, given = tuple(value.shape[1:]), str(value.dtype).removeprefix("torch.")
    dim = 1 if segmentation or len(shape) == 3 else -1
    logits = name.rpartition(".")[2] == "logits" and value.is_floating_point()
    if logits and top_k != "all" and int(top_k) < value.shape[dim]:
        return Top(shape, given, dtype, int(top_k), dim)
    return Whole(shape, given, dtype)


def read(spec: dict[str, Any]) -> Packing:
    """The packing that `spec` spells."""
    common = (tuple(spec["shape"]), spec["given"], spec["dtype"])
    return Top(*common, spec["top_k"], spec["dim"]) if "top_k" in spec else Whole(*common)


def lost(value: Tensor, packed: Packed) -> Bool[Tensor, ""]:
    """Whether a number is nan, or became infinite by being stored in fewer bits."""
    stored = packed[""]
    if not stored.is_floating_point():
        return torch.zeros((), dtype=torch.bool, device=stored.device)
    return value.isnan().any() | (stored.isinf().sum() > value.isinf().sum())
