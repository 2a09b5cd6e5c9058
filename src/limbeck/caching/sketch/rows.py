"""Sets of class numbers, each with a small whole number, in bits: Rice-coded, and read back without a loop over tokens.

A row is the set of classes of one token, sorted, each with a *level* (how likely, or how often drawn). It is stored as the
gaps between neighbours, less one, and the levels. Both are Rice-coded: a number x is x >> b in unary (so many zeros and a
one) and its b low bits as they are. For gaps of a random set that is within 0.03 to 0.15 bit per class of what is needed
at all to name the set; sorted lists of fixed-width numbers need log2(k!) bits more (37 bytes at k = 64).

All unary parts of a sample's gaps lie together, then those of its levels, then all low bits, a gap's and its level's side
by side. So the ones of a unary plane, counted off, are the classes of all rows in order, and reading is a handful of
passes over whole planes. How many low bits a gap has follows from how many classes its row has (`gap_bits`).

A sample is: three little-endian uint32 (how many rows; bytes of each unary plane), what the codec says about the rows,
and the three planes, each from a byte on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
HEAD = 12


@dataclass(frozen=True)
class Rows:
    """Rows one after another: how many classes each has, and of every class its number and level."""

    counts: Ints
    classes: Ints
    levels: Ints


def expected_bits(classes: int, count: int, low: int) -> float:
    """Of one gap on average, in a random set of `count` of `classes`, with `low` low bits."""
    return low + 1 + 1 / math.expm1(min(2.0**low * count / classes, 600.0))


@cache
def gap_bits(classes: int, most: int) -> Bytes:
    """The best number of low bits of a gap, for rows of 0 to `most` classes."""
    best = [min(range(32), key=lambda low, n=n: expected_bits(classes, n, low)) for n in range(1, most + 1)]  # type: ignore[misc]
    table = np.array([0, *best], dtype=np.uint8)
    table.setflags(write=False)
    return table


def pack(rows: Rows, classes: int, most: int, fine: int, said: Bytes) -> Bytes:
    """One sample: its rows, `fine` low bits in a level, and what the codec says about them."""
    low = gap_bits(classes, most)[rows.counts].astype(np.int64)
    ends = rows.counts.cumsum()
    before = np.empty_like(rows.classes)
    before[1:] = rows.classes[:-1]
    before[(ends - rows.counts)[rows.counts > 0]] = -1
    gaps, low = rows.classes - before - 1, np.repeat(low, rows.counts)
    field = (gaps & ((1 << low) - 1)) << fine | rows.levels & ((1 << fine) - 1)
    first, second = _unary(gaps >> low), _unary(rows.levels >> fine)
    head = np.array([len(rows.counts), len(first), len(second)], dtype="<u4").view(np.uint8)
    return np.concatenate([head, said, first, second, _fields(field, low + fine)])


def unpack(samples: Sequence[Bytes], classes: int, most: int, fine: int, sizes: Ints, said: int) -> tuple[Rows, Bytes]:
    """The rows of all samples, one after another, and what is said about each, `[rows, said]`.

    The first thing said of a row (its first byte) is how many classes it has, as a place in `sizes`.
    """
    heads = np.frombuffer(b"".join(sample[:HEAD].tobytes() for sample in samples), dtype="<u4").reshape(-1, 3)
    counts_of, first, second = heads.astype(np.int64).T
    starts = np.array([HEAD + counts_of * said, first, second]).cumsum(0)
    told = _joined([sample[HEAD:end] for sample, end in zip(samples, starts[0])]).reshape(-1, said)
    counts = sizes[told[:, 0]]
    row = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    in_sample = np.diff(np.append(0, counts.cumsum())[np.append(0, counts_of.cumsum())])
    high = _ones([s[a:b] for s, a, b in zip(samples, starts[0], starts[1])], in_sample)
    levels = _ones([s[a:b] for s, a, b in zip(samples, starts[1], starts[2])], in_sample)
    low = gap_bits(classes, most)[counts]
    width = low[row] if fine == 0 else low[row] + np.uint8(fine)
    fields = _read([s[b:] for s, b in zip(samples, starts[2])], width, in_sample)
    if fine:
        shift = np.uint32(fine)
        levels = levels << shift | fields & np.uint32((1 << fine) - 1)
        fields = fields >> shift
        width = width - np.uint8(fine)
    # sums wrap around at 2^32, differences within a row do not
    upto = np.cumsum((high.astype(np.uint32) << width) + fields + np.uint32(1), dtype=np.uint32)
    ends = counts.cumsum()
    base = np.append(np.uint32(0), upto)[ends - counts] + np.uint32(1)
    return Rows(counts, (upto - base[row]).astype(np.int64), levels.astype(np.int64)), told


def rows_of(sample: Bytes) -> int:
    """How many rows a packed sample has."""
    return int.from_bytes(sample[:4].tobytes(), "little")


def _unary(numbers: Ints) -> Bytes:
    ones = (numbers + 1).cumsum() - 1
    bits = np.zeros(ones[-1] + 1 if len(ones) else 0, dtype=np.uint8)
    bits[ones] = 1
    return np.packbits(bits)


def _fields(numbers: Ints, widths: Ints) -> Bytes:
    """Numbers of some width one after another, the first bit the lowest."""
    ends = widths.cumsum()
    starts = ends - widths
    size = -(-int(ends[-1]) // 8) if len(ends) else 0
    shifted, at = numbers << (starts & 7), starts >> 3
    whole = np.zeros(size + 8)
    for byte in range(6):  # fields do not overlap, so that their sum is what all bits are together
        whole += np.bincount(at + byte, weights=(shifted >> (8 * byte)) & 255, minlength=size + 8)[: size + 8]
    return whole[:size].astype(np.uint8)


def _joined(parts: Sequence[Bytes]) -> Bytes:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)


def _ones(planes: Sequence[Bytes], numbers: Ints) -> NDArray[np.uint32]:
    """The numbers in unary planes, each of which holds so many and begins anew."""
    bits = np.unpackbits(_joined(planes)).view(np.bool_)
    ones = np.flatnonzero(bits).astype(np.uint32)
    found = np.empty_like(ones)
    if len(ones):
        found[0] = ones[0]
        np.subtract(ones[1:], ones[:-1], out=found[1:])
        found[1:] -= np.uint32(1)
        lengths = np.array([8 * len(plane) for plane in planes], dtype=np.int64)
        used = numbers > 0
        firsts = (numbers.cumsum() - numbers)[used]
        found[firsts] = ones[firsts] - (lengths.cumsum() - lengths)[used].astype(np.uint32)
    return found


def _read(planes: Sequence[Bytes], widths: Bytes, numbers: Ints) -> NDArray[np.uint32]:
    """Fields of these widths (up to 25 bits), of planes of which each begins at a byte of its own."""
    ends = widths.cumsum(dtype=np.int64)
    starts = ends - widths
    if len(planes) > 1:
        firsts = (numbers.cumsum() - numbers).clip(max=max(len(widths) - 1, 0))
        lengths = np.array([8 * len(plane) for plane in planes], dtype=np.int64)
        moved = lengths.cumsum() - lengths - (starts[firsts] if len(widths) else 0)
        starts = starts + np.repeat(moved, numbers)
    joined = np.append(_joined(planes), np.zeros(4, dtype=np.uint8)).astype(np.uint32)
    words = joined[:-3] | joined[1:-2] << np.uint32(8) | joined[2:-1] << np.uint32(16) | joined[3:] << np.uint32(24)
    found = words[starts >> 3] >> (starts & 7).astype(np.uint32)
    return found & ((np.uint32(1) << widths.astype(np.uint32)) - np.uint32(1))
