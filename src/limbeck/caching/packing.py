"""How a signal lies on disk: whole in fewer bits, the most likely classes with what remains for the others, or sketches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from limbeck.caching.sketch.codec import Codec
from limbeck.caching.sketch.rows import Bytes, rows_of
from limbeck.errors import RecipeError
from limbeck.randomness import fold, seeds_for, uniform
from limbeck.signals import Projection
from limbeck.sketches import Sketch

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


@dataclass(frozen=True)
class Tokens:
    """Logits of tokens, of those that the batch's column `answer` counts (all, if it has none): a `Sketch` each.

    What comes back is a `Sketch` [batch, length, k] that lies as the batch's `input_ids` do; tokens without an answer know
    nothing. `limbeck.caching.sketch.codec` says what is kept of a token and how exactly.

    Args:
        shape: of a sample's logits, [length, classes]; lengths differ from batch to batch.
        given: the type in which the teacher gave them.
        codec: how a token is stored.
        seed: of the draws, where classes are drawn.
        token_bytes: how many bytes a token takes, about.
    """

    shape: tuple[int, ...]
    given: str
    codec: Codec
    seed: int
    token_bytes: float
    dtype = "sketch"

    def pack(self, value: Float[Tensor, "batch length classes"] | Projection, batch: Mapping[str, Any]) -> Packed:
        """`""`: the bytes of all samples, one after another; `length`: how many each has."""
        if len(value.shape) != 3 or value.shape[-1] != self.codec.classes:
            raise RecipeError(
                f"the teacher's logits have shape {list(value.shape)}; stored are logits of tokens, [batch, length, {self.codec.classes}]."
            )
        counts = _counted(batch, value.shape[:2])
        starts = _starts(batch, value.shape[1], self.seed) if self.codec.draws else None
        samples = []
        for row, counted in enumerate(
            counts.to(value.hidden.device if isinstance(value, Projection) else value.device)
        ):
            if isinstance(value, Projection):
                own: Tensor | Projection = replace(value, hidden=value.hidden[row, counted])
            else:
                own = value[row, counted]
            samples.append(self.codec.encode(own, None if starts is None else starts[row, counted].to(counted.device)))
        joined = np.concatenate(samples) if samples else np.zeros(0, dtype=np.uint8)
        return {"": torch.from_numpy(joined), "length": torch.tensor([len(s) for s in samples], dtype=torch.int64)}

    def unpack(self, samples: Sequence[Bytes], batch: Mapping[str, Any]) -> Sketch:
        """The sketches of these samples, in the places that the batch's `answer` counts.

        Raises:
            RecipeError: the batch counts other tokens than were stored.
        """
        stored = [rows_of(sample) for sample in samples]
        shape = (len(samples), max(stored, default=0))
        if "answer" in batch:
            shape = (len(samples), batch["answer"].shape[1])
        counts = (
            torch.arange(shape[1]) < torch.tensor(stored)[:, None] if "answer" not in batch else batch["answer"].cpu()
        )
        wrong = [(int(i), had, int(here)) for i, had, here in zip(batch["id"], stored, counts.sum(-1)) if had != here]
        if wrong:
            raise RecipeError(
                f"sample {wrong[0][0]} has {wrong[0][2]} tokens that count in this batch, and {wrong[0][1]} had when the teacher was asked. "
                "Stored logits serve the texts, tokens and masks that were asked about: ask again for others."
            )
        places = counts.flatten().nonzero().squeeze(-1).numpy()
        return self.codec.decode(samples).sketch(shape, places)

    def spec(self) -> dict[str, Any]:
        """How `cache.json` spells it."""
        own = {"shape": list(self.shape), "given": self.given, "dtype": self.dtype}
        return own | {"tokens": self.codec.spec() | {"seed": self.seed, "bytes": self.token_bytes}}


def _counted(batch: Mapping[str, Any], shape: Sequence[int]) -> Bool[Tensor, "batch length"]:
    """Which tokens are stored."""
    if "answer" not in batch:
        return torch.ones(*shape, dtype=torch.bool)
    if tuple(batch["answer"].shape) != tuple(shape):
        raise RecipeError(
            f"the teacher gave logits of {list(shape)} tokens, and the column 'answer' has shape {list(batch['answer'].shape)}."
        )
    return batch["answer"].bool()


def _starts(batch: Mapping[str, Any], length: int, seed: int) -> Float[Tensor, "batch length"]:
    """Where the draws of a token begin: uniform for each, and spread evenly over the tokens of a sample."""
    seeds = batch["view_seed"] if "view_seed" in batch else seeds_for(batch["id"], seed, 0)
    first = uniform(fold(seeds.cpu(), _DRAWS), 1).double()
    return (first + torch.arange(length) * _GOLDEN).remainder(1)


_GOLDEN = (math.sqrt(5) - 1) / 2
_DRAWS = 0x5EED  # other random numbers than those of a view
LANGUAGE_BYTES = 114.0
"""For a token of a language model where nothing else is said."""

Packing = Whole | Top | Tokens


def of_tokens(value: Any, name: str, keys: Any, seed: int, batch: Mapping[str, Any]) -> Tokens | None:
    """How logits of a language model are stored: the batch says with its column `answer` that it is one; else None.

    Args:
        keys: `cache` of the recipe: `top_k`, `samples` or `token_bytes`.

    Raises:
        RecipeError: keys for language models, and it is none.
    """
    language = "answer" in batch and name.rpartition(".")[2] == "logits" and len(getattr(value, "shape", ())) == 3
    if not language:
        for key in ("samples", "token_bytes"):
            if getattr(keys, key) is not None and name.rpartition(".")[2] == "logits":
                raise RecipeError(
                    f"cache.{key} is for language models, whose batches say with a column 'answer' which tokens count. Here use cache.top_k."
                )
        return None
    classes, given = value.shape[-1], value.hidden if isinstance(value, Projection) else value
    counted = _counted(batch, value.shape[:2]).to(given.device)
    size = keys.token_bytes
    if keys.samples is not None:
        codec = Codec.drawn(classes, keys.samples)
    elif keys.top_k is not None:
        codec = Codec.top(classes, classes if keys.top_k == "all" else keys.top_k)
    else:
        size = LANGUAGE_BYTES if size is None else size
        some = replace(value, hidden=given[counted]) if isinstance(value, Projection) else given[counted]
        codec = Codec.for_bytes(some, size) if counted.any() else Codec(classes, min(512, classes), price=1e-4)
    about = float(size or round(codec.expected_bytes(), 1))
    return Tokens(tuple(value.shape[1:]), str(given.dtype).removeprefix("torch."), codec, seed, about)


def of(value: Tensor, name: str, dtype: str, top_k: int | str, segmentation: bool = False) -> Whole | Top:
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
    if "tokens" in spec:
        own = dict(spec["tokens"])
        seed, about = own.pop("seed"), own.pop("bytes")
        return Tokens(tuple(spec["shape"]), spec["given"], Codec(**own), seed, about)
    common = (tuple(spec["shape"]), spec["given"], spec["dtype"])
    return Top(*common, spec["top_k"], spec["dim"]) if "top_k" in spec else Whole(*common)


def described(spec: dict[str, Any]) -> str:
    """What is left out, in words."""
    if "top_k" in spec:
        return f", the {spec['top_k']} most likely"
    if "tokens" not in spec:
        return ""
    own = spec["tokens"]
    most = f"{own['most']:,}" + (" draws" if own["draws"] else " most likely")
    what = (
        f"up to {own['most']:,} of the most likely, as many as are worth their bits" if own["price"] else f"the {most}"
    )
    rest = "" if own["draws"] else " and the mass of all others"
    return f" of each token that counts, {what}{rest}: about {own['bytes']:g} bytes"


def lost(value: Tensor, packed: Packed) -> Bool[Tensor, ""]:
    """Whether a number is nan, or became infinite by being stored in fewer bits."""
    stored = packed[""]
    if not stored.is_floating_point():
        return torch.zeros((), dtype=torch.bool, device=stored.device)
    return value.isnan().any() | (stored.isinf().sum() > value.isinf().sum())
