"""A language model that is asked once: what lies on disk are sketches of the tokens that count, and they train as it does."""

import hashlib
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import limbeck
from limbeck import RecipeError, Student, Teacher
from limbeck.caching import packing
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.trainer import Silent
from limbeck.randomness import seeds_for
from limbeck.signals import Projection
from limbeck.sketches import Sketch

CLASSES, LENGTH, ROWS = 50, 9, 12


class Speaker(nn.Module):
    def __init__(self, width=6, whole=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.read, self.head, self.whole = nn.Embedding(CLASSES, width), nn.Linear(width, CLASSES), whole
        self.head.weight.data.mul_(8)

    def forward(self, input_ids):
        found = Projection(torch.tanh(self.read(input_ids)), self.head.weight, self.head.bias, softcap=20.0)
        return found.materialise() if self.whole else found


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def columns(rows=ROWS, seed=3, empty=()):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, CLASSES, (rows, LENGTH), generator=draw)
    answer = torch.rand(rows, LENGTH, generator=draw) < 0.6
    answer[:, -1] = False
    answer[list(empty)] = False
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "target": ids.roll(-1, 1).where(answer, -100),
        "answer": answer,
        "answer_bytes": answer.sum(1),
    }


def data(**more):
    splits = {"train": TensorSplit(columns(**more)), "validation": TensorSplit(columns(4, 5), first_id=ROWS)}
    return Data(splits, dict.fromkeys(columns(), ""), source="tokens")


def teacher(whole=True):
    return Teacher(Speaker(whole=whole), view="input_ids")


def ask(out, heard=None, whole=True, **keys):
    base = {"data": data(), "teacher": teacher(whole), "task": "text", "train": {"batch_size": 4}}
    return limbeck.cache(out=out, observer=heard or Heard(), **(base | keys))


def batch(rows, split="train"):
    return data().splits[split].__getitems__(rows)


@pytest.mark.parametrize("whole", [True, False])
def test_the_answers_are_sketches_of_the_tokens_that_count(tmp_path, whole):
    stored = ask(tmp_path / "c", whole=whole, cache={"top_k": 8})
    rows = [7, 0, 7, 11, 3]
    shown = batch(rows)
    found = stored(shown)["logits"]
    assert isinstance(found, Sketch)
    assert stored.sketches
    assert found.shape == (5, LENGTH, CLASSES)
    counts = shown["answer"]
    exact = Sketch.top(teacher()(shown)["logits"], 8)
    torch.testing.assert_close(found.log_tail[counts], exact.log_tail[counts], atol=2e-3, rtol=1e-3)
    expanded, expected = found.expand()[counts], exact.expand()[counts]
    torch.testing.assert_close(expanded, expected, atol=1 / 8, rtol=0)
    assert torch.isneginf(found.log_probs[~counts]).all()
    assert torch.isneginf(found.log_tail[~counts]).all()
    torch.testing.assert_close(found.total()[counts], torch.ones(int(counts.sum())))
    found.checked()


def test_what_is_stored_is_said(tmp_path):
    heard = Heard()
    stored = ask(tmp_path / "c", heard, cache={"top_k": 8})
    spec = stored.header["signals"]["logits"]
    assert (spec["dtype"], spec["tokens"]["most"], spec["tokens"]["price"]) == ("sketch", 8, 0.0)
    assert any("of each token that counts, the 8 most likely and the mass of all others" in said for said in heard.said)
    ask(tmp_path / "d", heard, cache={"samples": 20})
    assert any("the 20 draws: about" in said for said in heard.said)
    ask(tmp_path / "e", heard)
    assert any(
        "as many as are worth their bits and the mass of all others: about 114 bytes" in said for said in heard.said
    )


@pytest.mark.parametrize("cache", [{"token_bytes": 12}, {"token_bytes": 20}])
def test_no_more_bytes_than_asked_for(tmp_path, cache):
    stored = ask(tmp_path / "c", cache=cache)
    tokens = int(data().splits["train"].tensors["answer"].sum() + data().splits["validation"].tensors["answer"].sum())
    kept = sum(len(t) for t in stored._parts["logits"][""])
    assert kept <= 1.15 * cache["token_bytes"] * tokens + 12 * (ROWS + 4)
    assert kept >= 0.5 * cache["token_bytes"] * tokens


def test_every_class_where_all_are_asked_for(tmp_path):
    stored = ask(tmp_path / "c", cache={"top_k": "all"})
    shown = batch([1, 2])
    counts, exact = shown["answer"], teacher()(shown)["logits"].log_softmax(-1)
    near = exact > exact.amax(-1, keepdim=True) - 19
    torch.testing.assert_close(
        stored(shown)["logits"].expand()[near & counts[..., None]], exact[near & counts[..., None]], atol=1 / 8, rtol=0
    )


def test_draws_do_not_depend_on_who_asks_and_are_unbiased(tmp_path):
    one = ask(tmp_path / "c", cache={"samples": 30})
    other = ask(tmp_path / "d", cache={"samples": 30}, train={"batch_size": 6})
    shown = batch(list(range(ROWS)))
    found, again = one(shown)["logits"], other(shown)["logits"]
    assert found.sampled
    assert torch.equal(found.log_probs, again.log_probs)
    assert torch.equal(found.ids, again.ids)
    p = teacher()(shown)["logits"].softmax(-1)[shown["answer"]]
    drawn = found.expand().exp()[shown["answer"]]
    assert ((drawn - p).abs() < 1 / 30 + 1e-6).all()
    assert (drawn - p).abs().max() > 1e-3
    starts = packing._starts(shown, LENGTH, 0)
    assert starts.unique().numel() == starts.numel()
    many = packing._starts({"id": torch.arange(2000)}, 3, 0)
    torch.testing.assert_close(many.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.03, rtol=0)
    assert not torch.equal(
        packing._starts({"id": shown["id"], "view_seed": seeds_for(shown["id"], 0, 1)}, LENGTH, 0), starts
    )


@pytest.mark.parametrize("whole", [True, False])
def test_training_on_sketches_of_everything_is_training_with_the_teacher(tmp_path, whole):
    """All classes are kept, in steps of 1/8 nat: the same weights up to what the steps round."""
    keys = {"data": data(), "task": "text", "method": "token-kd", "control": "none"}
    keys |= {"train": {"epochs": 2, "batch_size": 4, "lr": 0.01}, "evaluate": []}
    stored = ask(tmp_path / "c", cache={"top_k": "all"})
    found = []
    for name, by in (("online", teacher(whole)), ("cached", stored)):
        run = limbeck.distill(
            teacher=by, student=Student(Speaker(4, whole, seed=1), view="input_ids"), out=tmp_path / name, **keys
        )
        found.append(load_file(run.folder / "student" / "model.safetensors"))
    begun = Speaker(4, seed=1).state_dict()
    for name, online in found[0].items():
        way = (online - begun[name]).abs().mean()
        assert way > 1e-3
        assert (online - found[1][name]).abs().mean() < 0.03 * way


def test_with_the_method_the_cache_stores_what_it_reads(tmp_path):
    heard = Heard()
    student = Student(Speaker(4, seed=1), view="input_ids")
    stored = ask(tmp_path / "c", heard, student=student, method="token-kd", cache={"top_k": 8})
    assert stored.holds == ["logits"]
    assert stored.answers("validation")
    assert not ask(tmp_path / "d", cache={"samples": 8}).answers("validation")  # draws tell of no single token


@pytest.mark.parametrize("cache", [{"top_k": 8}, {"token_bytes": 20}, {"samples": 20}])
def test_a_stored_teachers_own_figures_are_estimated_and_the_report_says_so(tmp_path, cache):
    """A token that is none of the known ones counts with an even share of the rest; draws leave the column empty."""
    stored, kept = ask(tmp_path / "c", cache=cache), data().splits["validation"]
    student = Student(Speaker(4, seed=1), view="input_ids")
    keys = {"data": data(), "task": "text", "method": "token-kd", "control": "none", "train": {"steps": 1}}
    run = limbeck.distill(teacher=stored, student=student, out=tmp_path / "run", **keys)
    said = " ".join(run.result["notices"])
    if "samples" in cache:
        assert run.result["teacher"] is None
        assert "it stores draws, which do not tell how likely a single token is; its column stays empty" in said
        return
    batch = kept.__getitems__(list(range(len(kept))))
    counts, target = batch["answer"], batch["target"].clamp(min=0)
    expanded = stored(batch)["logits"].expand().gather(-1, target[..., None]).squeeze(-1)
    exact = teacher()(batch)["logits"].log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)
    figures = run.result["teacher"]["figures"]
    assert figures["nll"] == pytest.approx(-float(expanded[counts].mean()), rel=1e-5)
    assert figures["nll"] == pytest.approx(-float(exact[counts].mean()), rel=0.2)
    held = stored(batch)["logits"].holds(target)
    missing = float((~held)[counts].float().mean())
    assert 0 < missing < 1
    assert f"estimated from the classes that are stored: {missing:.1%} of the tokens are none of them" in said
    assert (exact - expanded)[held & counts].abs().max() < (0.13 if "top_k" in cache else 1.0)


def test_a_kill_costs_nothing_and_changes_nothing(tmp_path):
    def sums(folder):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("shard-*")}

    ask(tmp_path / "c", cache={"token_bytes": 20})
    first = sums(tmp_path / "c")
    (tmp_path / "c" / "shard-00001.safetensors").unlink()
    again = ask(tmp_path / "c", cache={"token_bytes": 20})
    assert sums(tmp_path / "c") == first
    assert isinstance(again(batch([2]))["logits"], Sketch)


def test_a_sample_in_which_nothing_counts(tmp_path):
    kept = data(empty=(2,))
    stored = ask(tmp_path / "c", data=kept, cache={"top_k": 4})
    found = stored(kept.splits["train"].__getitems__([2, 3]))["logits"]
    assert torch.isneginf(found.log_probs[0]).all()
    alone = stored(kept.splits["train"].__getitems__([2]))["logits"]
    assert alone.shape == (1, LENGTH, CLASSES)
    assert torch.isneginf(alone.log_tail).all()


def test_a_teacher_with_columns_of_its_own(tmp_path):
    """Another tokenizer: what counts for the teacher are the tokens of its own column."""
    theirs = {f"teacher_{name}": tensor for name, tensor in columns(seed=8).items()}
    both = Data(
        {"train": TensorSplit({**columns(), **theirs})}, dict.fromkeys([*columns(), *theirs], ""), source="both"
    )
    stored = ask(tmp_path / "c", data=both, teacher=Teacher(Speaker(), view="teacher_input_ids"), cache={"top_k": 4})
    shown = both.splits["train"].__getitems__([0, 5])
    known = stored(shown)["logits"].known.any(-1)
    assert torch.equal(known, shown["teacher_answer"])
    assert not torch.equal(known, shown["answer"])


def test_other_tokens_than_were_asked_about(tmp_path):
    stored = ask(tmp_path / "c", cache={"top_k": 4})
    shown = batch([4, 5])
    shown["answer"] = torch.ones_like(shown["answer"])
    with pytest.raises(RecipeError, match=r"sample 4 has 9 tokens that count in this batch"):
        stored(shown)


def test_logits_that_are_no_distribution(tmp_path):
    by = teacher()
    by.model.head.bias.data[3] = math.nan
    with pytest.raises(RecipeError, match="no distribution to store"):
        limbeck.cache(
            data=data(), teacher=by, task="text", out=tmp_path / "c", cache={"top_k": 4}, train={"batch_size": 4}
        )


def test_refused_keys(tmp_path):
    with pytest.raises(RecipeError, match="top_k and samples are different ways"):
        ask(tmp_path / "c", cache={"top_k": 4, "samples": 3})
    plain = Data(
        {"train": TensorSplit({"x": torch.randn(4, 3), "label": torch.zeros(4, dtype=torch.int64)})},
        {"x": "", "label": ""},
    )
    with pytest.raises(RecipeError, match=r"cache.token_bytes is for language models"):
        limbeck.cache(
            data=plain, teacher=Teacher(nn.Linear(3, 5), view="x"), out=tmp_path / "d", cache={"token_bytes": 20}
        )


def test_the_spelling_in_the_header_is_read_again():
    how = packing.of_tokens(
        torch.randn(2, 5, 300), "logits", _Keys(), 7, {"answer": torch.ones(2, 5, dtype=torch.bool)}
    )
    assert packing.read(how.spec()) == how
    assert how.token_bytes == packing.LANGUAGE_BYTES


class _Keys:
    top_k = samples = token_bytes = None
