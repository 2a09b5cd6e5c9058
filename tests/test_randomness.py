import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.randomness import _mixed, _signed, fold, normal, seeds_for, uniform

int64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(state: int) -> int:
    """One output of the published generator, in Python integers: the slow twin."""
    word = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_first_outputs_of_splitmix64_for_state_1234567():
    # The published test vector of the reference implementation.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([_signed(1234567 + (i + 1) * golden) for i in range(5)])
    assert _mixed(states).tolist() == [_signed(word) for word in expected]


@given(int64)
@settings(deadline=None)
def test_mixing_agrees_with_integers_of_unlimited_size(state):
    assert _mixed(torch.tensor([_signed(state + 0x9E3779B97F4A7C15)])).item() == _signed(splitmix64(state))


@given(st.lists(int64, min_size=1, max_size=6), int64)
@settings(deadline=None)
def test_fold_keeps_distinct_seeds_distinct(seeds, salt):
    folded = fold(torch.tensor(seeds), salt)
    assert len(set(folded.tolist())) == len(set(seeds))


@given(int64, st.integers(-(2**70), 2**70))
@settings(deadline=None)
def test_fold_is_never_undone_by_another_salt(seed, salt):
    seeds = torch.tensor([seed])
    assert fold(seeds, salt).item() == fold(seeds, salt + 2**64).item()
    assert fold(seeds, salt).item() != fold(seeds, salt + 1).item()


def test_the_order_of_folds_matters():
    seeds = torch.arange(100)
    assert not (fold(fold(seeds, 1), 2) == fold(fold(seeds, 2), 1)).any()


@given(
    ids=st.lists(int64, min_size=1, max_size=8),
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    at=st.integers(0, 8),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_a_sample_gets_the_same_however_the_batch_is_cut_or_ordered(ids, shape, at, order):
    ids = torch.tensor(ids)
    for draw in (uniform, normal):
        whole = draw(seeds_for(ids, 3, 7), *shape)
        assert whole.shape == (len(ids), *shape)
        assert whole.dtype == torch.float32
        cut = torch.cat([draw(seeds_for(part, 3, 7), *shape) for part in (ids[:at], ids[at:])])
        assert torch.equal(whole, cut)
        turned = list(range(len(ids)))
        order.shuffle(turned)
        assert torch.equal(whole[turned], draw(seeds_for(ids[turned], 3, 7), *shape))


def test_seed_step_and_id_each_change_the_seeds():
    ids = torch.arange(1000)
    base = seeds_for(ids, 0, 0)
    assert len(base.unique()) == 1000
    for other in (seeds_for(ids, 1, 0), seeds_for(ids, 0, 1), seeds_for(ids + 1000, 0, 0)):
        assert not (base == other).any()
    assert not (seeds_for(ids, 1, 0) == seeds_for(ids, 0, 1)).any()


def test_no_global_generator_is_touched():
    before = torch.get_rng_state()
    normal(seeds_for(torch.arange(4), 0, 0), 8)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seeds", [torch.arange(2000), fold(torch.zeros(1, dtype=torch.int64), 3).expand(1)])
def test_uniform_is_uniform_over_samples_and_over_positions(seeds):
    values = uniform(seeds, 200_000 // len(seeds)).flatten().double().numpy()
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    counts = torch.histc(torch.from_numpy(values), bins=256, min=0, max=1).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_normal_is_standard_normal():
    values = normal(seeds_for(torch.arange(2000), 0, 0), 100).flatten().double().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(values)) < 0.05


def test_normal_stays_finite_at_the_ends_of_its_range():
    # The outermost words give the largest numbers; the smallest magnitude is next to zero and not nan.
    ends = torch.tensor([0.5, 2.0**52 - 0.5], dtype=torch.float64) * 2.0**-51 - 1.0
    outermost = torch.erfinv(ends) * math.sqrt(2)
    assert outermost.isfinite().all()
    assert outermost[0] == -outermost[1]
    assert 8.1 < outermost[1] < 8.3


def test_neighbouring_ids_steps_positions_and_salts_are_uncorrelated():
    n = 20_000
    ids = torch.arange(n)
    base = normal(seeds_for(ids, 0, 0), 2)
    others = {
        "position": base[:, 1],
        "id": base[:, 0].roll(1),
        "step": normal(seeds_for(ids, 0, 1)),
        "seed": normal(seeds_for(ids, 1, 0)),
        "salt": normal(fold(seeds_for(ids, 0, 0), 0)),
    }
    for name, other in others.items():
        correlation = torch.corrcoef(torch.stack([base[:, 0], other]))[0, 1].item()
        assert abs(correlation) < 4.5 / math.sqrt(n), name


def test_one_flipped_bit_of_the_seed_flips_half_of_the_bits():
    seeds = seeds_for(torch.arange(500), 0, 0)
    for bit in (0, 31, 62):
        changed = fold(seeds, 0) ^ fold(seeds ^ (1 << bit), 0)
        share = sum((word & (2**64 - 1)).bit_count() for word in changed.tolist()) / (64 * len(seeds))
        assert 0.48 < share < 0.52


def test_the_numbers_are_pinned_so_that_old_runs_can_be_repeated():
    seeds = seeds_for(torch.tensor([0, 1]), 0, 0)
    assert seeds.tolist() == [-3609066458710737143, -1260350068652732130]
    assert uniform(seeds).tolist() == [0.8318753242492676, 0.8246726989746094]
