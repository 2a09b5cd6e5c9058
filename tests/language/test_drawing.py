"""Drawing tokens: frequencies against probabilities, restrictions against their definitions, seeds and nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare as _chisquare

from limbeck.language.drawing import distribution, draw, mixed
from limbeck.randomness import fold, uniform


def chisquare(found, expected):
    expected = torch.as_tensor(expected).double()
    return _chisquare(found, expected * found.sum() / expected.sum())


SEEDS = fold(torch.arange(8_000), 7)


def logits(rows=1, width=7, seed=0):
    return 2 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(temperature):
    log_p = distribution(logits(), temperature=temperature)
    found = torch.bincount(draw(log_p.expand(len(SEEDS), -1), SEEDS), minlength=7)
    expected = (logits()[0] / temperature).softmax(0).double() * len(SEEDS)
    assert chisquare(found, expected).pvalue > 1e-3


def test_a_mixture_is_the_mixture_of_the_probabilities_and_is_drawn_as_such():
    ours, theirs = distribution(logits(seed=1)), distribution(logits(seed=2), top_k=3)
    log_p = mixed(ours, theirs, 0.2)
    torch.testing.assert_close(log_p.exp(), 0.8 * ours.exp() + 0.2 * theirs.exp())
    assert torch.equal(mixed(ours, theirs, 0.0), ours)
    assert torch.equal(mixed(ours, theirs, 1.0), theirs)
    found = torch.bincount(draw(log_p.expand(len(SEEDS), -1), SEEDS), minlength=7)
    assert chisquare(found, log_p[0].exp().double() * len(SEEDS)).pvalue > 1e-3


@settings(max_examples=40)
@given(st.integers(0, 99), st.integers(2, 40), st.floats(0.1, 5), st.integers(0, 45), st.floats(0.01, 1))
def test_restrictions_are_what_they_say(seed, width, temperature, k, mass):
    z = logits(4, width, seed)
    found = distribution(z, temperature=temperature, top_k=k, top_p=mass)
    for row, said in zip(z, found, strict=True):
        p = (row / temperature).softmax(0)
        order = p.argsort(descending=True).tolist()
        order = order[:k] if k else order
        whole, kept, held = float(p[order].sum()), [], 0.0
        for token in order:
            if held >= mass - 1e-6 and held > 0:
                break
            kept.append(token)
            held += float(p[token]) / whole
        expected = torch.zeros(width)
        expected[kept] = p[kept] / p[kept].sum()
        torch.testing.assert_close(said.exp(), expected, rtol=1e-3, atol=1e-5)


def test_zero_temperature_is_the_most_probable_token_and_surely_so():
    log_p = distribution(torch.tensor([[0.0, 3.0, 3.0, -math.inf]]), temperature=0)
    assert log_p.tolist() == [[-math.inf, 0.0, -math.inf, -math.inf]]
    assert set(draw(log_p.expand(100, -1), SEEDS[:100]).tolist()) == {1}


def test_tokens_without_mass_are_never_drawn_and_the_last_one_can_be():
    log_p = torch.tensor([[-math.inf, math.log(0.5), -math.inf, math.log(0.5), -math.inf]])
    assert set(draw(log_p.expand(5000, -1), SEEDS[:5000]).tolist()) == {1, 3}
    assert set(draw(torch.tensor([[-math.inf, -math.inf, 0.0]]).expand(500, -1), SEEDS[:500]).tolist()) == {2}


def test_a_rows_draw_is_its_own():
    log_p = distribution(logits(64, 9, 3))
    together = draw(log_p, SEEDS[:64])
    alone = torch.cat([draw(log_p[i : i + 1], SEEDS[i : i + 1]) for i in range(64)])
    turned = draw(log_p.flip(0), SEEDS[:64].flip(0)).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, turned)
    assert not torch.equal(together, draw(log_p, SEEDS[64:128]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_normalised_in_fp32(dtype):
    z = logits(3, 2000).to(dtype)
    found = distribution(z, temperature=0.7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3), rtol=1e-5, atol=0)


def test_a_small_probability_among_many_tokens_is_met_as_often_as_it_should():
    """One uniform number of 24 bits would be too coarse for the tail of a large vocabulary."""
    log_p = torch.full((1, 20_000), -math.log(20_000))
    found = torch.cat([draw(log_p.expand(100, -1), part) for part in SEEDS[:1000].split(100)])
    halves = torch.bincount(found // 5_000, minlength=4)
    assert chisquare(halves, [250.0] * 4).pvalue > 1e-3
    assert len(found.unique()) > 940  # 1000 draws of 20,000 meet about 975 of them


@given(st.integers(0, 99), st.sampled_from([1, 255, 256, 257, 700]))
def test_blocks_do_not_show(seed, width):
    """The same as one long cumulated sum, at every vocabulary size around the blocks' own."""
    log_p, seeds = distribution(logits(20, width, seed)), SEEDS[seed * 20 : seed * 20 + 20]
    high, low = uniform(seeds, 2).double().unbind(-1)
    mass = log_p.exp().double().cumsum(-1)
    expected = (mass <= ((high + low * 2**-24) * mass[:, -1])[:, None]).sum(-1)
    assert torch.equal(draw(log_p, seeds), expected)


def test_a_block_whose_sum_was_rounded_up_still_gives_a_token_with_mass():
    log_p = torch.full((200, 512), -math.inf)
    log_p[:, :200] = distribution(logits(200, 200, 4))
    assert int(draw(log_p, SEEDS[:200]).max()) < 200
