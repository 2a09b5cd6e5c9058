"""What is kept of a distribution over a vocabulary, and how exactly: from logits to bytes, from bytes to a `Sketch`.

Three ways, by what is asked for:

- `Top(k)`: the k most probable classes. Log-probabilities in steps of 1/8, so each is off by 1/16 nat at most before the
  whole is normalised and 1/8 after it, which costs less than 7e-4 nat of divergence.
- `Priced(price)`: as many classes as are worth their bits, differently for every token: that k is taken which makes
  KL(token, stored) + price * bits smallest. A peaked token takes a few bytes, a flat one what it needs. Levels are even
  in the cube root of p, coarse where little mass hangs on them: with steps w the loss is about m w^2 / 24 where mass m lies,
  and a level costs every class above it one bit, so the best w is proportional to p^(-1/3).
- `Drawn(draws)`: systematic samples with their counts, exact and unbiased (`Sketch.drawn`).

The mass of all other classes is stored for itself, as log-odds, so that what comes back always sums to 1: never a
truncated distribution that looks like a whole one. Classes whose probability is 0, or below e^-20 of the largest, are left to
the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from limbeck.caching.sketch import rows
from limbeck.caching.sketch.rows import Bytes, Ints, Rows
from limbeck.errors import RecipeError
from limbeck.signals import Projection
from limbeck.sketches import Sketch

Logits = Float[Tensor, "tokens classes"] | Projection

_LEAST = 20.0  # nats below the most probable class: what is less likely belongs to the rest
_NO_TAIL = -(2**15)
MOST = 512
"""How many classes of a token are kept at most where their number is free (four times as many above 250 bytes)."""


@dataclass(frozen=True)
class Codec:
    """How tokens of one vocabulary are stored.

    Args:
        classes: V.
        most: k of `Top` and the largest k of `Priced`; how many draws.
        price: nats for a bit; 0: k is fixed.
        draws: whether classes are drawn.
    """

    classes: int
    most: int
    price: float = 0.0
    draws: bool = False

    @classmethod
    def top(cls, classes: int, k: int) -> Codec:
        """The k most probable classes."""
        return cls(classes, min(k, classes))

    @classmethod
    def drawn(cls, classes: int, draws: int) -> Codec:
        """So many draws."""
        return cls(classes, draws, draws=True)

    @classmethod
    @torch.no_grad()
    def for_bytes(cls, logits: Logits, size: float) -> Codec:
        """As good as it gets at no more than `size` bytes per token, on average over tokens like these.

        Prices go in steps of a sixteenth of an octave, so that small differences between machines do not show.
        """
        low, high = 32, 16 * 24  # 2^-2 to 2^-24 nats for a bit; the more expensive, the fewer bytes
        codec = cls(logits.shape[-1], min(MOST if size <= 250 else 4 * MOST, logits.shape[-1]))
        kept = codec._kept(logits)
        while low < high:
            middle = (low + high + 1) // 2
            tried = replace(codec, price=2.0 ** (-middle / 16))
            if len(tried._pack(kept)) <= size * len(kept.rest):
                low = middle
            else:
                high = middle - 1
        return replace(codec, price=2.0 ** (-low / 16))

    def spec(self) -> dict[str, Any]:
        """How `cache.json` spells it."""
        return {"classes": self.classes, "most": self.most, "price": self.price, "draws": self.draws}

    def expected_bytes(self) -> float:
        """About how many bytes a token takes; 0 where that depends on the tokens."""
        if self.price:
            return 0.0
        level = 0.0 if self.draws else 6.0
        used = min(self.classes, 0.4 * self.most if self.draws else self.most)
        gap = min(rows.expected_bits(self.classes, max(1, round(used)), low) for low in range(25))
        return self.said + (used * (gap + level) + self.most * self.draws) / 8

    @cached_property
    def sizes(self) -> Ints:
        """Which numbers of classes a row may have, at most 256 of them: a byte names one."""
        if self.most < 256:
            return np.arange(self.most + 1)
        some = np.geomspace(160, self.most, 96).round().astype(np.int64)
        return np.unique(np.concatenate([np.arange(160), some]))

    @property
    def fine(self) -> int:
        """Low bits of a level."""
        return 0 if self.price or self.draws else 3

    @property
    def said(self) -> int:
        """Bytes about a row: how many classes, and log-odds of the rest (8 bits where bytes count, else 16)."""
        return 1 if self.draws else 2 if self.price else 3

    @torch.no_grad()
    def encode(self, logits: Logits, starts: Float[Tensor, "tokens"] | None = None) -> Bytes:
        """One sample's tokens; `starts` in [0, 1) for draws, see `Sketch.drawn`. A projection is multiplied out in pieces.

        Raises:
            RecipeError: logits that are nan or infinite, or -inf all over.
        """
        if not self.draws:
            return self._pack(self._kept(logits))
        assert starts is not None
        pieces = zip(_pieces(logits), starts.split(_at_once(self.classes)))
        return self._pack_drawn([Sketch.drawn(piece, self.most, start) for piece, start in pieces])

    def decode(self, samples: Sequence[Bytes]) -> Ragged:
        """The tokens of several samples, one after another."""
        found, said = rows.unpack(samples, self.classes, self.most, self.fine, self.sizes, self.said)
        if self.draws:
            log_probs = np.log((found.levels + 1).astype(np.float32) / np.float32(self.most))
            return Ragged(found, log_probs, np.full(len(found.counts), -np.inf, dtype=np.float32), self)
        log_tail, log_head = self._masses(said[:, 1:])
        x = self._heights(found.levels)
        used = found.counts > 0
        starts = (found.counts.cumsum() - found.counts)[used]
        mass = np.zeros(len(found.counts), dtype=np.float32)
        if len(x):
            mass[used] = np.add.reduceat(x, starts)
        shift = log_head - np.log(np.where(used, mass, 1))
        return Ragged(found, np.log(x) + np.repeat(shift, found.counts), log_tail, self)

    def _kept(self, logits: Logits) -> _Kept:
        """The most probable classes, and of all others together what choosing among k needs."""
        found = []
        for piece in _pieces(logits):
            log_p = (piece if piece.dtype == torch.float64 else piece.float()).log_softmax(-1)
            top, ids = log_p.topk(self.most, dim=-1)
            others = log_p.scatter(-1, ids, -math.inf)
            p = others.exp()
            surprise = -(p * others.masked_fill(p == 0, 0.0)).sum(-1, dtype=torch.float64)
            found.append((ids, top.double(), p.sum(-1, dtype=torch.float64), surprise))
        return _Kept(*(torch.cat(part).cpu().numpy() for part in zip(*found)))

    def _pack(self, kept: _Kept) -> Bytes:
        counts = self._counts(kept)
        place = np.searchsorted(self.sizes, counts, side="right") - 1
        counts = self.sizes[place]
        rank = np.arange(self.most)
        used = rank < counts[:, None]
        p = np.exp(kept.log_p)
        tail = kept.rest + np.where(used, 0, p).sum(-1)
        last = np.take_along_axis(kept.log_p, np.maximum(counts - 1, 0)[:, None], -1)
        levels = self._levels(np.where(used, kept.log_p - last, 0))
        order = np.argsort(np.where(used, kept.ids, self.classes), axis=-1, kind="stable")
        ids, levels = (np.take_along_axis(each, order, -1)[used] for each in (kept.ids, levels))
        with np.errstate(divide="ignore"):
            odds = np.log(tail) - np.log(np.where(used, p, 0).sum(-1))
        said = np.concatenate([place.astype(np.uint8)[:, None], self._odds(odds)], -1)
        return rows.pack(Rows(counts, ids, levels), self.classes, self.most, self.fine, said.ravel())

    def _pack_drawn(self, sketches: Sequence[Sketch]) -> Bytes:
        counts, classes, drawn = [], [], []
        for sketch in sketches:
            known = sketch.known.cpu().numpy()
            ids = np.where(known, sketch.ids.cpu().numpy(), self.classes)
            order = np.argsort(ids, axis=-1, kind="stable")
            times = np.rint(np.exp(sketch.log_probs.double().cpu().numpy()) * self.most).astype(np.int64)
            held = np.take_along_axis(known, order, -1)
            counts.append(known.sum(-1))
            classes.append(np.take_along_axis(ids, order, -1)[held])
            drawn.append(np.take_along_axis(times, order, -1)[held])
        of = Rows(np.concatenate(counts), np.concatenate(classes), np.concatenate(drawn) - 1)
        place = np.searchsorted(self.sizes, of.counts).astype(np.uint8)
        return rows.pack(of, self.classes, self.most, 0, place)

    def _counts(self, kept: _Kept) -> Ints:
        """How many classes of each token are kept."""
        possible = (kept.log_p > kept.log_p[:, :1] - _LEAST).sum(-1)
        if not self.price:
            return possible
        p, n = np.exp(kept.log_p), np.arange(1, self.most + 1)
        later = np.cumsum(p[:, ::-1], -1)[:, ::-1]  # of this class and those after it
        tail = kept.rest[:, None] + np.append(later[:, 1:], np.zeros((len(p), 1)), -1)
        told = np.cumsum((-p * np.where(p > 0, kept.log_p, 0))[:, ::-1], -1)[:, ::-1]
        surprise = kept.surprise[:, None] + np.append(told[:, 1:], np.zeros((len(p), 1)), -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            even = np.where(tail > 0, -tail * np.log(tail / np.maximum(self.classes - n, 1)), 0)
            roots = np.cumsum(np.cbrt(p), -1) / np.cbrt(p)
        lost = even - surprise
        # _levels counts from the last class kept; half a level is what rounding down takes off
        bits = n * (self._gap_costs + 0.5) + (roots - n) * 3 / _STEP
        worth = np.where((n <= possible[:, None]) & np.isin(n, self.sizes), lost + self.price * bits, np.inf)
        return worth.argmin(-1) + 1

    @cached_property
    def _gap_costs(self) -> NDArray[np.float64]:
        low = rows.gap_bits(self.classes, self.most)
        return np.array([rows.expected_bits(self.classes, n, int(low[n])) for n in range(1, self.most + 1)])

    def _levels(self, x: NDArray[np.float64]) -> Ints:
        """Of log(p / smallest p kept)."""
        if self.price:
            return np.floor((np.exp(x / 3) - 1) * (3 / _STEP)).astype(np.int64)
        return np.rint(x * 8).astype(np.int64)

    def _heights(self, levels: Ints) -> NDArray[np.float32]:
        """p / smallest p kept."""
        if self.price:
            root = 1 + (levels.astype(np.float32) + np.float32(0.45)) * np.float32(_STEP / 3)
            return root * root * root
        return np.exp(levels.astype(np.float32) / np.float32(8))

    def _odds(self, odds: NDArray[np.float64]) -> Bytes:
        """log(rest / known) as bytes, -inf as the smallest number: steps of 1/8, or of 1/512."""
        if self.price:
            whole = np.clip(np.rint(odds * 8), -127, 127)
            return np.where(np.isneginf(odds), -128, whole).astype(np.int8).view(np.uint8)[:, None]
        whole = np.clip(np.rint(odds * 512), -(2**15) + 1, 2**15 - 1)
        return np.where(np.isneginf(odds), _NO_TAIL, whole).astype("<i2").view(np.uint8).reshape(-1, 2)

    def _masses(self, said: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logs of the mass of the rest, and of the known classes."""
        if self.price:
            whole, least, steps = np.ascontiguousarray(said).view(np.int8)[:, 0], -128, 8
        else:
            whole, least, steps = np.ascontiguousarray(said).view("<i2")[:, 0], _NO_TAIL, 512
        odds = np.where(whole == least, -np.inf, whole.astype(np.float32) / steps).astype(np.float32)
        return -np.logaddexp(np.float32(0), -odds), -np.logaddexp(np.float32(0), odds)


def _at_once(classes: int) -> int:
    """How many tokens are looked at together."""
    return max(1, 2**24 // classes)


def _pieces(logits: Logits) -> Iterator[Float[Tensor, "tokens classes"]]:
    """A few tokens after another, at least one piece."""
    rows_of = logits.hidden if isinstance(logits, Projection) else logits
    for part in rows_of.split(_at_once(logits.shape[-1])):
        piece = replace(logits, hidden=part).materialise() if isinstance(logits, Projection) else part
        if not piece.amax(-1).isfinite().all():  # a nan is the largest of all
            raise RecipeError(
                "the teacher's logits hold nan or infinity, or rule out every class, so there is no distribution to store. "
                "Look at the teacher's answers, in fp32 if they come from half precision."
            )
        yield piece


_STEP = 1.8  # nats: the first level of `Priced`; measured, and flat: 1.4 costs 1.5 bytes more, 2.0 none


@dataclass(frozen=True)
class _Kept:
    """Tokens before a choice: classes and log-probabilities, falling; mass and sum of -p log p of all others."""

    ids: Ints
    log_p: NDArray[np.float64]
    rest: NDArray[np.float64]
    surprise: NDArray[np.float64]


@dataclass(frozen=True)
class Ragged:
    """Decoded tokens, one after another: as many classes each as were kept."""

    rows: Rows
    log_probs: NDArray[np.float32]
    log_tail: NDArray[np.float32]
    codec: Codec

    def __len__(self) -> int:
        return len(self.rows.counts)

    def sketch(self, shape: Sequence[int] | None = None, places: Ints | None = None) -> Sketch:
        """The tokens as a sketch `[*shape, k]`, k the most that any of them has.

        Args:
            shape: of the batch; None: `[tokens]`.
            places: where in the flattened shape each token belongs; all other places know nothing at all.
        """
        shape = [len(self)] if shape is None else list(shape)
        places = np.arange(len(self)) if places is None else places
        counts, size = self.rows.counts, math.prod(shape)
        k = max(int(counts.max(initial=0)), 1)
        ids, log_probs = np.zeros(size * k, dtype=np.int32), np.full(size * k, -np.inf, dtype=np.float32)
        at = np.repeat(places * k - (counts.cumsum() - counts), counts) + np.arange(len(self.rows.classes))
        ids[at], log_probs[at] = self.rows.classes, self.log_probs
        log_tail = np.full(size, -np.inf, dtype=np.float32)
        log_tail[places] = self.log_tail
        return Sketch(
            torch.from_numpy(ids).view(*shape, k),
            torch.from_numpy(log_probs).view(*shape, k),
            torch.from_numpy(log_tail).view(*shape),
            self.codec.classes,
            self.codec.draws,
        )
