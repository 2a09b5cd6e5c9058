"""Speculative decoding writes what the target alone would; what is kept is counted, and adds up to sum_v min(p_v, q_v)."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck import Student, Task, Teacher
from limbeck.engine.processes import World
from limbeck.evaluation import speculative as spec
from limbeck.evaluation.measure import measure
from limbeck.language.drawing import draw
from limbeck.randomness import fold, seeds_for
from limbeck.signals import Projection
from limbeck.teachers.endpoint import Endpoint
from limbeck.teachers.mixture import Mixture

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from small_models import llama

SIZE = 5


class Tokens:
    eos, pad, size = (0,), 0, SIZE
    pieces = (b"", b"a", b"b", b"c", b"d")

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode()

    def same_as(self, other):
        return isinstance(other, Tokens)


class Endless(Tokens):
    eos = ()


class Bigram(torch.nn.Module):
    """The next token depends on the last one alone."""

    def __init__(self, seed: int, sharp: float = 1.0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(sharp * torch.randn(SIZE, SIZE, generator=draw), requires_grad=False)

    def forward(self, input_ids):
        return self.table[input_ids]


def actor(kind, model, tokens=Endless):
    made = kind(model, view="input_ids" if isinstance(model, Bigram) else None)
    made._tokenizer = tokens()
    return made


def once():
    ids = torch.tensor([[1, 2, 3, 1, 4], [2, 2, 1, 0, 0], [3, 1, 1, 2, 2]])
    target = torch.tensor([[-100, 3, 1, 4, -100], [-100, 1, 0, -100, -100], [-100, 1, 2, 2, -100]])
    for rows in (slice(0, 2), slice(2, 3)):
        mask = torch.ones_like(ids[rows])
        yield {
            "input_ids": ids[rows],
            "attention_mask": mask,
            "target": target[rows],
            "answer": target[rows] >= 0,
            "answer_bytes": torch.ones(len(ids[rows]), dtype=torch.int64),
            "id": torch.arange(3)[rows],
        }


def distributions(count, seed):
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed)).mul(1.5).softmax(-1)


def fits_exactly(observed, expected, alpha=1e-4):
    """The chi-square test does not reject these counts; the draws are the same each time, so neither is the verdict."""
    shares = expected.detach().double()
    assert stats.chisquare(observed.double(), shares / shares.sum() * observed.sum()).pvalue > alpha


def one_block(p, q, rows, seed=0):
    """A block of every row, with the same p and q for all: what was proposed, kept, and follows."""
    seeds = seeds_for(torch.arange(rows), seed, 0)
    gamma = len(q)
    proposed = torch.stack([draw(q[i].log().expand(rows, -1), fold(seeds, 10 + i)) for i in range(gamma)], 1)
    kept, after = spec.verified(p.expand(rows, -1, -1), q.expand(rows, -1, -1), proposed, seeds)
    return proposed, kept, after


def test_the_first_token_is_drawn_from_the_target_exactly():
    p, q = distributions(2, 0), distributions(1, 1)
    proposed, kept, after = one_block(p, q, 20_000)
    first = torch.where(kept > 0, proposed[:, 0], after)
    fits_exactly(first.bincount(minlength=SIZE), p[0])
    apart = (proposed[:, 0].bincount(minlength=SIZE) / 20_000 - p[0]).abs().max()
    assert apart > 0.05  # while the draft's is another distribution


def test_two_tokens_are_drawn_from_the_target_jointly():
    """Positions are independent here, so the pairs are those of the product where two tokens came of one block."""
    p, q = distributions(3, 2), distributions(2, 3)
    proposed, kept, after = one_block(p, q, 30_000)
    more = kept >= 1
    second = torch.where(kept > 1, proposed[:, 1], after)[more]
    fits_exactly(second.bincount(minlength=SIZE), p[1])  # whatever the first was
    third = after[kept == 2]
    fits_exactly(third.bincount(minlength=SIZE), p[2])


def test_what_is_kept_is_the_sum_of_the_smaller_probabilities_by_enumeration():
    p, q = distributions(2, 4), distributions(1, 5)
    by_hand = sum(float(q[0, x]) * min(1.0, float(p[0, x] / q[0, x])) for x in range(SIZE))
    assert by_hand == pytest.approx(float(torch.minimum(p[0], q[0]).sum()))
    _, kept, _ = one_block(p, q, 20_000)
    assert stats.binomtest(int(kept.sum()), 20_000, by_hand).pvalue > 1e-4


def test_what_follows_a_refusal_is_what_the_draft_proposes_too_seldom():
    p, q = distributions(2, 6), distributions(1, 7)
    _, kept, after = one_block(p, q, 20_000)
    rest = (p[0] - q[0]).clamp(min=0)
    observed, there = after[kept == 0].bincount(minlength=SIZE), rest > 0
    assert observed[~there].sum() == 0
    fits_exactly(observed[there], rest[there] / rest.sum())


@given(st.integers(1, 5), st.integers(0, 30))
@settings(max_examples=15)
def test_a_draft_that_is_the_target_is_always_kept(gamma, seed):
    p = distributions(gamma + 1, seed)
    proposed, kept, after = one_block(p, p[:-1], 50, seed)
    assert (kept == gamma).all()
    assert proposed.shape == (50, gamma)
    assert after.min() >= 0


@given(st.floats(0, 1), st.integers(1, 8))
def test_the_expected_block_is_the_geometric_sum(a, gamma):
    expected = gamma + 1 if a == 1 else (1 - a ** (gamma + 1)) / (1 - a)
    assert spec.expected_block(a, gamma) == pytest.approx(expected, rel=1e-6)


def test_blocks_of_tokens_kept_independently_are_as_long_as_the_formula_says():
    p, q = distributions(1, 8).expand(5, -1), distributions(1, 9).expand(4, -1)
    _, kept, _ = one_block(p, q, 20_000)
    acceptance = float(torch.minimum(p[0], q[0]).sum())
    found = spec.Decoded(4, kept=kept.tolist())
    assert found.block_efficiency == pytest.approx(spec.expected_block(acceptance, 4), rel=0.015)
    assert found.accepted == pytest.approx(acceptance, abs=0.01)


def test_counts_by_hand():
    found = spec.Decoded(4, kept=[4, 0, 2])
    assert found.accepted == 6 / (4 + 1 + 3)
    assert found.block_efficiency == (5 + 1 + 3) / 3
    assert math.isnan(spec.Decoded(4).accepted)
    assert math.isnan(spec.Decoded(4).block_efficiency)


@pytest.mark.parametrize("gamma", [1, 3])
def test_whole_texts_are_distributed_as_the_targets(gamma):
    """The pairs of tokens in 200 texts of 20 are those of the target's own chain, whatever the draft."""
    draft, target = actor(Student, Bigram(0)), actor(Teacher, Bigram(1))
    seeds = seeds_for(torch.arange(200), 0, gamma)
    found = spec.decoded(draft, target, [[1, 2]] * 200, seeds, gamma=gamma, tokens=20)
    assert {len(text) for text in found.texts} == {20}
    p = target.model.table.softmax(-1)
    pairs = torch.zeros(SIZE, SIZE)
    for text in found.texts:
        for a, b in zip([2, *text], text):
            pairs[a, b] += 1
    for last in range(SIZE):
        fits_exactly(pairs[last], p[last])


def test_greedily_it_writes_just_what_the_target_would():
    draft, target = actor(Student, Bigram(0)), actor(Teacher, Bigram(3))
    best, text, last = target.model.table.argmax(-1).tolist(), [], 2
    for _ in range(12):
        last = best[last]
        text.append(last)
    found = spec.decoded(draft, target, [[2]], torch.tensor([5]), gamma=3, tokens=12, temperature=0.0)
    assert found.texts == [text]
    same = spec.decoded(
        actor(Student, Bigram(3)), target, [[2]], torch.tensor([5]), gamma=3, tokens=12, temperature=0.0
    )
    assert same.texts == [text]
    assert same.kept == [3, 3, 3]


def test_a_text_stops_at_its_end_and_a_block_that_ends_is_not_counted():
    draft, target = (actor(kind, Bigram(4), Tokens) for kind in (Student, Teacher))
    found = spec.decoded(draft, target, [[1]] * 40, seeds_for(torch.arange(40), 0, 0), gamma=2, tokens=9)
    assert all(0 not in text[:-1] for text in found.texts)
    assert any(text[-1] == 0 for text in found.texts)
    assert all(len(text) == 9 for text in found.texts if text[-1] != 0)
    assert set(found.kept) == {2}  # they are the same network


class Factored(Bigram):
    """The same as factors."""

    def forward(self, input_ids):
        return Projection(torch.nn.functional.one_hot(input_ids, SIZE).float(), self.table.T)


@pytest.mark.parametrize("kind", [Bigram, Factored])
@pytest.mark.parametrize("padding", [0, 3])
def test_the_exact_figures_are_means_over_answer_tokens(kind, padding):
    """Rows of padding in the target's head take no part, however large their logits are."""
    draft, target = (actor(cls, kind(seed)) for cls, seed in ((Student, 0), (Teacher, 1)))
    p, q = (one.model.table.softmax(-1) for one in (target, draft))
    target.model.table.data = torch.nn.functional.pad(target.model.table, (0, padding), value=9.0)
    asked = torch.tensor([2, 3, 1, 2, 1, 1, 1, 2])  # the tokens that stand where an answer is predicted
    found = spec.exact(draft, target, once, World())
    assert found["acceptance"] == pytest.approx(float(torch.minimum(p, q).sum(-1)[asked].mean()))
    assert found["greedy_acceptance"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1))[asked].double().mean()))
    greedy = spec.decoded(draft, target, [[2]], torch.tensor([5]), gamma=2, tokens=6, temperature=0.0)
    best, last, text = p.argmax(-1).tolist(), 2, []
    for _ in range(6):
        last = best[last]
        text.append(last)
    assert greedy.texts == [text]


def test_the_check_has_no_speedup_without_transformers_and_none_of_the_teacher_itself():
    draft, target = actor(Student, Bigram(0)), actor(Teacher, Bigram(1))
    found = measure(draft, once, Task("text"), checks=["speculative"], judge=target, time_it=False).entry["figures"]
    assert found.keys() >= {"acceptance", "accepted", "block_efficiency", "greedy_accepted", "greedy_block_efficiency"}
    assert "speedup" not in found
    assert 1 <= found["block_efficiency"] <= spec.GAMMA + 1
    own = measure(target, once, Task("text"), checks=["speculative"], judge=target, time_it=False).entry["figures"]
    assert "acceptance" not in own
    assert not spec.fits(draft, None)
    target._tokenizer.difference = lambda _: "they split text differently"
    other = actor(Student, Bigram(0))
    other._tokenizer.same_as = lambda _: False
    assert not spec.fits(other, target)


def test_who_cannot_be_drafted_for_is_said():
    """Every reason has its sentence; a teacher of the same tokens has none."""
    tokens, target = Endless(), actor(Teacher, Bigram(1))
    assert spec.unfit(tokens, target, "text") is None
    assert spec.unfit(tokens, target) is None
    several = Mixture({"one": actor(Teacher, Bigram(1)), "two": actor(Teacher, Bigram(2))})
    silent, strange = actor(Teacher, Bigram(1)), actor(Teacher, Bigram(1))
    silent._tokenizer = None
    strange._tokenizer.difference = lambda other: "teacher and student split text differently"
    other = Endless()
    other.same_as = lambda _: False
    far = Endpoint("http://x/v1", "tiny", classes=SIZE)
    for about, reason in (
        ((tokens, target, "classification"), r"token by token, and the task is classification\. Leave speculative out"),
        ((tokens, None), r"and there is no teacher\. .* or give one$"),
        ((tokens, several), r"several teachers.* or give one of them$"),
        ((tokens, far), r"no network here \(tiny at http://x/v1\)\. .* or give the teacher itself$"),
        ((None, target), r"no tokenizer lies beside the student\. .* student\.tokenizer=FOLDER$"),
        ((tokens, silent), r"no tokenizer lies beside the teacher\. .* teacher\.tokenizer=FOLDER$"),
        ((other, strange), r"and teacher and student split text differently\. Leave speculative out of evaluate$"),
    ):
        assert re.search(reason, spec.unfit(*about)), reason


@pytest.fixture(scope="module")
def llamas():
    return actor(Student, llama(1, size=SIZE)), actor(Teacher, llama(2, size=SIZE))


def test_assisted_generation_of_transformers_is_counted_as_our_loop_counts(llamas):
    draft, target = llamas
    prompts = [[1, 2], [3, 3, 1]]
    theirs, speedup = spec.generated(draft, target, prompts, gamma=3, tokens=12, temperature=0.0)
    ours = spec.decoded(draft, target, prompts, torch.arange(2), gamma=3, tokens=12, temperature=0.0)
    assert theirs.texts == ours.texts
    assert sorted(theirs.kept) == sorted(ours.kept)
    assert speedup > 0


def test_assisted_generation_keeps_as_much_as_the_acceptance_says(llamas):
    """A draft that is its target is always kept; nothing is left changed behind it."""
    _, target = llamas
    twin = actor(Student, llama(2, size=SIZE))
    settings_before, state = twin.model.generation_config, torch.get_rng_state()
    found, _ = spec.generated(twin, target, [[1, 2], [2]], gamma=3, tokens=12, temperature=1.0)
    assert set(found.kept) == {3}
    assert found.accepted == 1
    assert twin.model.generation_config is settings_before
    assert torch.equal(torch.get_rng_state(), state)
    draft = llamas[0]
    found, _ = spec.generated(draft, target, [[1, 2]] * 4, gamma=3, tokens=24, temperature=1.0)
    assert 0 <= found.accepted < 1


def test_prompts_that_leave_no_room_are_left_out():
    target = actor(Teacher, Bigram(1))

    class Config:
        max_position_embeddings = 4

    target.model.config = Config()
    assert spec.held_out(target, once, 9, 2, [target])[0] == [[1, 2], [2, 2], [3, 1]]
    assert spec.held_out(target, once, 2, 2, [target])[0] == [[1, 2], [2, 2]]
    starts, ids = spec.held_out(target, once, 9, 3, [target])
    assert starts == []
    assert len(ids) == 0
