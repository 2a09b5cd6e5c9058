import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.caching.sketch import rows
from limbeck.caching.sketch.rows import Rows, gap_bits, pack, unpack

SIZES = np.arange(256)


def drawn(counts, classes, seed, levels=9):
    draw = np.random.default_rng(seed)
    ids = [np.sort(draw.choice(classes, n, replace=False)) for n in counts]
    whole = np.concatenate([*ids, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    return Rows(np.array(counts, dtype=np.int64), whole, draw.geometric(0.4, len(whole)) * draw.integers(1, levels))


def said(counts):
    return np.stack([np.array(counts, dtype=np.uint8), np.arange(len(counts), dtype=np.uint8)], -1).ravel()


def same(found, expected):
    for name in ("counts", "classes", "levels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@given(
    st.lists(st.lists(st.integers(0, 20), max_size=6), max_size=5),
    st.sampled_from([20, 21, 1000, 32000, 152064, 2**20]),
    st.integers(0, 4),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_read(samples, classes, fine, seed):
    all_rows = [drawn(counts, classes, seed + i) for i, counts in enumerate(samples)]
    packed = [pack(r, classes, 20, fine, said(r.counts)) for r in all_rows]
    found, told = unpack(packed, classes, 20, fine, SIZES, 2)
    parts = [[getattr(r, name) for r in all_rows] for name in ("counts", "classes", "levels")]
    same(found, Rows(*(np.concatenate([*each, np.zeros(0, dtype=np.int64)]).astype(np.int64) for each in parts)))
    np.testing.assert_array_equal(told[:, 1], np.concatenate([*(np.arange(len(c)) for c in samples), []]))


def test_every_class_and_the_first_and_the_last_one():
    every = Rows(np.array([5, 1, 1]), np.array([0, 1, 2, 3, 4, 0, 4]), np.arange(7))
    found, _ = unpack([pack(every, 5, 5, 1, said(every.counts))], 5, 5, 1, SIZES, 2)
    same(found, every)


@pytest.mark.parametrize("count", [1, 8, 64, 200])
def test_a_set_takes_little_more_than_its_entropy(count):
    """log2 of the number of sets of this size, against the bits that are used: within 0.2 bit for a class."""
    r = drawn([count] * 400, 32000, 3)
    r = Rows(r.counts, r.classes, np.zeros_like(r.levels))
    size = 8 * len(pack(r, 32000, 255, 0, np.zeros(0, dtype=np.uint8))) / 400 - count  # a level of 0 is one bit
    needed = (math.lgamma(32001) - math.lgamma(count + 1) - math.lgamma(32001 - count)) / math.log(2)
    assert needed <= size <= needed + 0.2 * count + 1.5


def test_as_many_low_bits_as_are_best():
    for count in (1, 3, 50):
        low = int(gap_bits(32000, 64)[count])
        best = rows.expected_bits(32000, count, low)
        assert all(best <= rows.expected_bits(32000, count, other) for other in range(20))


def test_the_bytes_as_they_are_described():
    """One row with classes 2 and 5 of 8, levels 0 and 2: gaps 2 and 2, no low bit kept of levels."""
    low = int(gap_bits(8, 2)[2])
    packed = pack(Rows(np.array([2]), np.array([2, 5]), np.array([0, 2])), 8, 2, 0, np.array([2], dtype=np.uint8))
    unary, fields = (2 >> low, 2 & ((1 << low) - 1)), low
    bits = "".join("0" * n + "1" for n in (unary[0], unary[0])).ljust(8, "0")
    assert packed[:12].view("<u4").tolist() == [1, 1, 1]
    assert packed[12:].tolist() == [2, int(bits, 2), int("10010000", 2), unary[1] | unary[1] << fields]
