"""The step of DMD2 that is timed against a loop by hand is the same step: equal losses, and no more memory than was promised."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.dmd2_step import SIDES, agreement, peak  # noqa: E402

CPU = torch.device("cpu")


def test_all_sides_make_the_same_updates():
    assert agreement(8, CPU) <= 1e-5


def test_the_engine_needs_no_more_memory_than_was_promised():
    ours, by_hand = (peak(SIDES[name], 8, CPU) for name in ("limbeck", "own pass"))
    assert ours <= 1.05 * by_hand
