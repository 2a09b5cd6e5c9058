"""Random numbers keyed per sample: what a sample is given does not depend on the batch that it came in.

A torch generator hands out numbers in order, so a sample's noise changes with its neighbours, with the micro-batch and
with the number of processes. Here every number is a hash of (seed of the sample, position), in the manner of
counter-based generators (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with the finaliser of
splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") as the hash. Nothing here
reads or changes a global generator.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FOLDING = 0xD1342543DE82EF95


def _signed(number: int) -> int:
    """The int64 with the same 64 bits as `number` modulo 2^64."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _shifted(x: Int64[Tensor, "..."], bits: int) -> Int64[Tensor, "..."]:
    """Shift right and fill with zeros; int64's own shift would fill with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The splitmix64 finaliser: a bijection of 64-bit words; every input bit moves about half of the output bits."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def fold(seeds: Int64[Tensor, "batch"], salt: int) -> Int64[Tensor, "batch"]:
    """New seeds out of seeds and a number: other salts give independent streams, equal salts the same one.

    `salt` is any integer (taken modulo 2^64). Folding with 0 also changes the seeds. The order of folds matters.
    """
    return _mixed(_mixed(seeds) + _signed((salt + 1) * _FOLDING))


def seeds_for(ids: Int64[Tensor, "batch"], seed: int, step: int) -> Int64[Tensor, "batch"]:
    """One seed per sample: a hash of the run's seed, of a step (or epoch) and of the sample's stable id."""
    return fold(fold(ids, seed), step)


def _words(seeds: Int64[Tensor, "batch"], shape: tuple[int, ...]) -> Int64[Tensor, "batch ..."]:
    """64 random bits per element of `[batch, *shape]`."""
    positions = torch.arange(1, math.prod(shape) + 1, device=seeds.device) * _signed(_GOLDEN)
    return _mixed(_mixed(seeds)[:, None] + positions).view(len(seeds), *shape)


def uniform(seeds: Int64[Tensor, "batch"], *shape: int) -> Float[Tensor, "batch ..."]:
    """float32 numbers in [0, 1), multiples of 2^-24; `[batch, *shape]` on the device of `seeds`.

    Bit for bit the same on every device. Without a shape there is one number per sample. A shorter shape gives the
    beginning of a longer one's numbers (in row-major order), so two uses of one seed must fold in different salts.
    """
    return _shifted(_words(seeds, shape), 40).to(torch.float32) * 2.0**-24


def normal(seeds: Int64[Tensor, "batch"], *shape: int) -> Float[Tensor, "batch ..."]:
    """float32 standard normal numbers; `[batch, *shape]` on the device of `seeds`.

    The inverse distribution function of a 52-bit uniform number, computed in float64 and rounded at the end, so devices
    agree but for a rare last bit, and the tails reach 8.2 standard deviations. Apple's MPS has no float64: there it is
    computed on the CPU.
    """
    words = _words(seeds.cpu() if seeds.device.type == "mps" else seeds, shape)
    middle = (_shifted(words, 12).to(torch.float64) + 0.5) * 2.0**-51 - 1.0
    return (torch.erfinv(middle) * math.sqrt(2.0)).to(torch.float32).to(seeds.device)
