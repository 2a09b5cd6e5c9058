"""Rollouts: frequencies, log-probabilities, padding, ends, context, seeds; with transformers' generate and without."""

from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from small_models import END, PAD, SIZE, Causal, Words, batch_of, gpt2, llama
from torch import nn

from limbeck.errors import RecipeError
from limbeck.language.rollouts import Sampler, sample
from limbeck.randomness import seeds_for
from limbeck.signals import Projection

WORDS = Words()
PROMPTS = [([2, 3, 4], [5, 6, END]), ([7, 8], [9, END]), ([4, 4, 4, 4, 5], [3])]


def causal(seed=0, **options):
    torch.manual_seed(seed)
    return Causal(**options)


MODELS = {"llama": llama, "gpt2": lambda: gpt2(context=64), "plain": causal}


@torch.no_grad()
def said(model, batch, temperature=1.0):
    """Log-probabilities of the counted targets, by one forward pass in eval mode."""
    model.eval()
    out = model(batch["input_ids"])
    log_p = (getattr(out, "logits", out) / temperature).log_softmax(-1)
    return log_p.gather(-1, batch["target"].clamp(min=0).unsqueeze(-1)).squeeze(-1) * batch["answer"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_old_log_probs_are_those_of_a_forward_pass(kind, temperature):
    model = MODELS[kind]()
    found = sample(model, WORDS, batch_of(PROMPTS), max_new_tokens=9, temperature=temperature, seed=3)
    assert found["answer"].sum(1).max() > 1
    assert found["old_log_probs"].dtype == torch.float32
    torch.testing.assert_close(found["old_log_probs"], said(model, found, temperature), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_written_has_the_models_probabilities(kind):
    """All texts of two tokens after one prompt: how often each comes, against the product of its probabilities."""
    model, rows = MODELS[kind](), 1500
    batch = batch_of([([2, 3], [4])] * rows)
    found = sample(model, WORDS, batch, max_new_tokens=2, seed=1)
    pairs = [(END,), *((a, b) for a, b in product(range(SIZE), repeat=2) if a != END)]
    texts = [([2, 3], list(pair)) for pair in pairs]
    expected = said(model, batch_of(texts)).sum(1).exp().double() * rows
    written = [tuple(t for t in row if t != -100) for row in found["target"].tolist()]
    counts = torch.tensor([written.count(pair) for pair in pairs])
    assert int(counts.sum()) == rows
    often = expected >= 5
    together = [
        torch.cat([x[often].double(), x[~often].double().sum().view(1)])
        for x in (counts, expected * rows / expected.sum())
    ]
    assert chisquare(*together).pvalue > 1e-3


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_changes_nothing_and_neither_do_the_neighbours(kind, temperature):
    model, how = MODELS[kind](), {"max_new_tokens": 6, "temperature": temperature}
    together = sample(model, WORDS, batch_of(PROMPTS), **how)
    wider = batch_of(PROMPTS)
    for name in ("input_ids", "attention_mask", "target", "answer"):
        wider[name] = nn.functional.pad(wider[name], (0, 5), value=-100 if name == "target" else 0)
    again = sample(model, WORDS, wider, **how)
    for name, value in together.items():
        assert torch.equal(again[name], value), name
    for i, prompt in enumerate(PROMPTS):
        alone = sample(model, WORDS, batch_of([prompt], first=i), **how)
        width = alone["input_ids"].shape[1]
        assert torch.equal(alone["input_ids"][0], together["input_ids"][i, :width])
        assert torch.equal(alone["target"][0], together["target"][i, :width])


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_is_the_argmax_of_a_forward_pass(kind):
    model = MODELS[kind]()
    found = sample(model, WORDS, batch_of(PROMPTS), max_new_tokens=5, temperature=0)
    model.eval()
    out = model(found["input_ids"])
    best = getattr(out, "logits", out).argmax(-1)
    assert torch.equal(best[found["answer"]], found["target"][found["answer"]])
    assert not found["old_log_probs"].any()


def test_prompts_stay_and_everything_after_the_first_end_is_cut():
    found = sample(llama(), WORDS, batch_of(PROMPTS * 20), max_new_tokens=8, seed=2)
    ended = 0
    for i, (ids, mask, target) in enumerate(
        zip(*(found[n].tolist() for n in ("input_ids", "attention_mask", "target")), strict=True)
    ):
        prompt, length = PROMPTS[i % 3][0], sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert ids[: len(prompt)] == prompt
        assert set(ids[length:]) <= {PAD}
        written = ids[len(prompt) : length]
        assert 1 <= len(written) <= 8
        assert END not in written[:-1]
        assert len(written) == 8 or written[-1] == END
        assert target == [-100] * (len(prompt) - 1) + written + [-100] * (len(mask) - length + 1)
        assert found["answer_bytes"][i] == sum(len(WORDS.pieces[t]) for t in written)
        ended += written[-1] == END
    assert 0 < ended < 60


class Ends(nn.Module):
    """Says the end at once, or never."""

    def __init__(self, at_once: bool):
        super().__init__()
        self.z = torch.full((SIZE,), 0.0)
        self.z[END] = 100.0 if at_once else -torch.inf
        self.z[5] = 50.0

    def forward(self, x):
        return self.z.expand(*x.shape, SIZE)


def test_an_empty_answer_is_its_end_alone():
    found = sample(Ends(True), WORDS, batch_of(PROMPTS), max_new_tokens=5)
    assert found["answer"].sum(1).tolist() == [1, 1, 1]
    assert set(found["target"][found["answer"]].tolist()) == {END}
    assert found["answer_bytes"].tolist() == [0, 0, 0]
    torch.testing.assert_close(found["old_log_probs"], torch.zeros_like(found["old_log_probs"]))


def test_an_answer_without_an_end_is_as_long_as_allowed():
    found = sample(Ends(False), WORDS, batch_of(PROMPTS), max_new_tokens=5)
    assert found["answer"].sum(1).tolist() == [5, 5, 5]


def test_a_padding_token_that_is_the_end_is_no_matter():
    model = llama()
    usual = sample(model, WORDS, batch_of(PROMPTS * 9), max_new_tokens=6)
    ending = sample(model, Words(pad=END), batch_of(PROMPTS * 9), max_new_tokens=6)
    for name in ("target", "answer", "attention_mask", "old_log_probs"):
        assert torch.equal(usual[name], ending[name]), name


def test_without_ends_nothing_ends():
    found = sample(llama(), Words(eos=[]), batch_of(PROMPTS * 9), max_new_tokens=4)
    assert set(found["answer"].sum(1).tolist()) == {4}


def test_several_ends_are_ends():
    found = sample(llama(), Words(eos=[END, 9]), batch_of(PROMPTS * 20), max_new_tokens=8)
    last = found["input_ids"].gather(1, found["attention_mask"].sum(1, keepdim=True) - 1)
    assert {END, 9} <= set(last.squeeze(1).tolist())
    assert not torch.isin(found["target"][:, :-1][found["answer"][:, 1:]], torch.tensor([END, 9])).any()


def test_each_row_goes_to_the_end_of_the_context_and_no_further():
    """GPT-2 has weights for 16 positions: a 17th would be an IndexError, also of rows that are finished already."""
    prompts = [([2] * 14, [3]), ([4, 5], [6]), ([7] * 15, [3])]
    found = sample(gpt2(context=16), Words(eos=[]), batch_of(prompts), max_new_tokens=9)
    assert found["attention_mask"].sum(1).tolist() == [16, 11, 16]
    alone = sample(gpt2(context=16), Words(eos=[]), batch_of(prompts[1:2], first=1), max_new_tokens=9)
    assert torch.equal(alone["input_ids"][0], found["input_ids"][1, :11])


@pytest.mark.parametrize("context", [None, 16])
def test_a_prompt_as_long_as_the_context_is_refused(context):
    batch = batch_of([([2, 3], [4]), ([2] * 16, [3])], first=40)
    with pytest.raises(RecipeError, match="the prompt of row 41 has 16 tokens, and the model reads 16"):
        sample(gpt2(context=16) if context is None else causal(), WORDS, batch, context=context)


@pytest.mark.parametrize("kind", MODELS)
def test_generators_and_modes_are_as_before(kind):
    model = MODELS[kind]().train()
    first = next(iter(model.children()))
    first.eval()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one = sample(model, WORDS, batch_of(PROMPTS), seed=4, max_new_tokens=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not first.training
    torch.randn(3)
    other = sample(model, WORDS, batch_of(PROMPTS), seed=4, max_new_tokens=6)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(
        sample(model, WORDS, batch_of(PROMPTS), seed=5, max_new_tokens=6)["old_log_probs"].sum(),
        one["old_log_probs"].sum(),
    )


def test_modes_come_back_when_something_raises():
    class Breaks(Causal):
        def forward(self, input_ids):
            raise RuntimeError("broken")

    model = Breaks().train()
    with pytest.raises(RuntimeError, match="broken"):
        sample(model, WORDS, batch_of(PROMPTS))
    assert all(module.training for module in model.modules())


def test_what_a_model_was_published_with_does_not_change_the_draws():
    """A top_k of 1 or a repetition penalty in its generation_config would make the samples another policy's."""
    model = llama()
    expected = sample(model, WORDS, batch_of(PROMPTS), max_new_tokens=6, seed=8)
    settings = model.generation_config
    settings.do_sample, settings.top_k, settings.temperature, settings.repetition_penalty = True, 1, 0.3, 9.0
    settings.suppress_tokens, settings.min_new_tokens = [5, 6, 7], 6
    found = sample(model, WORDS, batch_of(PROMPTS), max_new_tokens=6, seed=8)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert model.generation_config is settings
    assert settings.repetition_penalty == 9.0


def test_the_padding_of_a_head_is_never_written():
    model = llama(size=16)
    model.lm_head.weight.data[SIZE:] = 0
    model.lm_head.weight.data[SIZE:, 0] = 60.0
    found = sample(model, WORDS, batch_of(PROMPTS * 9), max_new_tokens=5)
    assert int(found["input_ids"].max()) < SIZE
    beams = sample(model, WORDS, batch_of(PROMPTS), max_new_tokens=5, beams=3)
    assert int(beams["input_ids"].max()) < SIZE
    assert int(model(beams["input_ids"]).logits.argmax(-1).max()) >= SIZE  # where the model would rather go


@pytest.mark.parametrize(("ours", "theirs"), [("llama", "plain"), ("plain", "llama"), ("gpt2", "llama")])
def test_a_mixture_is_drawn_from_both(ours, theirs):
    """Both with a cache of their own or none, prompts of different length: log-probabilities are those of the mixture."""
    student, teacher = MODELS[ours](), MODELS[theirs]()
    found = sample(
        student, WORDS, batch_of(PROMPTS), max_new_tokens=7, teacher=teacher, teacher_share=0.3, seed=6, temperature=0.8
    )
    q, p = said(student, found, 0.8).exp(), said(teacher, found, 0.8).exp()
    expected = (0.7 * q + 0.3 * p).log() * found["answer"]
    torch.testing.assert_close(found["old_log_probs"], expected, rtol=0, atol=1e-5)


def test_a_mixture_of_one_part_is_that_part():
    student, teacher = llama(), causal()
    alone = sample(teacher, WORDS, batch_of(PROMPTS), max_new_tokens=6)
    mixed = sample(student, WORDS, batch_of(PROMPTS), max_new_tokens=6, teacher=teacher, teacher_share=1.0)
    assert torch.equal(alone["input_ids"], mixed["input_ids"])
    alone = sample(student, WORDS, batch_of(PROMPTS), max_new_tokens=6)
    mixed = sample(student, WORDS, batch_of(PROMPTS), max_new_tokens=6, teacher=teacher)
    assert torch.equal(alone["input_ids"], mixed["input_ids"])


def test_logits_that_are_not_multiplied_out_are_so_for_the_last_token_only():
    class Factors(Causal):
        def forward(self, input_ids):
            hidden = self.memory(self.embed(input_ids))[0]
            return Projection(hidden, self.head.weight, self.head.bias, scale=3.0)

    ours, plain = Factors(), causal()
    ours.load_state_dict(plain.state_dict())
    one, other = (sample(m, WORDS, batch_of(PROMPTS), max_new_tokens=6) for m in (ours, plain))
    assert torch.equal(one["input_ids"], other["input_ids"])


def test_it_works_inside_autocast_and_leaves_no_graph():
    model = llama()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        found = sample(model, WORDS, batch_of(PROMPTS), max_new_tokens=6)
    assert found["old_log_probs"].dtype == torch.float32
    assert not found["old_log_probs"].requires_grad
    torch.testing.assert_close(found["old_log_probs"], said(model, found), rtol=0.1, atol=0.1)


def test_beams_find_a_text_at_least_as_probable_as_the_greedy_one():
    model = llama()
    greedy = sample(model, Words(eos=[]), batch_of(PROMPTS), max_new_tokens=4, temperature=0)
    beams = sample(model, Words(eos=[]), batch_of(PROMPTS), max_new_tokens=4, beams=SIZE**2)
    assert "old_log_probs" not in beams
    assert (said(model, beams).sum(1) >= said(model, greedy).sum(1) - 1e-5).all()
    with pytest.raises(RecipeError, match="beam search is there for models of transformers"):
        sample(causal(), WORDS, batch_of(PROMPTS), beams=2)


def test_columns_that_are_not_of_the_text_are_kept():
    found = sample(llama(), WORDS, batch_of(PROMPTS) | {"domain": torch.tensor([3, 1, 2])}, max_new_tokens=2)
    assert found["domain"].tolist() == [3, 1, 2]
    assert found["id"].tolist() == [0, 1, 2]


def test_seeds_may_be_given_row_by_row():
    """Four answers to one prompt: the same row four times, with seeds of its own."""
    batch = batch_of([PROMPTS[0]] * 4) | {"id": torch.zeros(4, dtype=torch.int64)}
    model, how = llama(), Sampler(max_new_tokens=8)
    same = how(model, WORDS, batch, seeds_for(batch["id"], 0, 0))
    own = how(model, WORDS, batch, seeds_for(torch.arange(4), 0, 0))
    assert len({tuple(row) for row in same["input_ids"].tolist()}) == 1
    assert len({tuple(row) for row in own["input_ids"].tolist()}) > 1


@pytest.mark.parametrize(("option", "value"), [("temperature", -1), ("top_p", 0), ("max_new_tokens", 0), ("beams", 0)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=option):
        Sampler(**{option: value})
