"""What a model writes is judged by exactly the judge's log-probabilities, and counted by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck import RecipeError, Student, Task, Teacher
from limbeck.evaluation.writing import distinct, side_by_side, writing
from limbeck.language.rollouts import Sampler

TEXT = st.lists(st.integers(0, 3), max_size=8)


class Tokens:
    eos, pad, size = (0,), 0, 4
    pieces = (b"", b"a", b"b", b"c")

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode()

    def same_as(self, other):
        return True


class Bigram(torch.nn.Module):
    """The next token depends on the last one alone."""

    def __init__(self, seed: int):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)))

    def forward(self, input_ids):
        return self.table[input_ids]


def once():
    ids = torch.tensor([[1, 2, 3, 1], [2, 2, 1, 0], [3, 1, 1, 2]])
    target = torch.tensor([[-100, 3, 1, -100], [-100, 1, 0, -100], [-100, 1, 2, -100]])
    for rows in (slice(0, 2), slice(2, 3)):
        yield {
            "input_ids": ids[rows],
            "attention_mask": torch.ones_like(ids[rows]),
            "target": target[rows],
            "answer": target[rows] >= 0,
            "answer_bytes": torch.tensor([2, 1, 2])[rows],
            "id": torch.arange(3)[rows],
        }


def actor(kind: type, seed: int):
    made = kind(Bigram(seed), view="input_ids")
    made._tokenizer = Tokens()
    return made


def test_the_judge_is_asked_about_every_token_that_was_written():
    student, judge = actor(Student, 0), actor(Teacher, 1)
    found = writing(student, once, Task("text"), judge=judge, sampler=Sampler(max_new_tokens=9))
    log_p = judge.model.table.detach().log_softmax(-1)
    letters = {"": 0, "a": 1, "b": 2, "c": 3}
    nats, count = 0.0, 0
    for prompt, text in found.texts:
        last = letters[prompt[-1]]
        ids = [letters[letter] for letter in text] + ([0] if len(text) < 9 else [])
        for token in ids:
            nats, count, last = nats - float(log_p[last, token]), count + 1, token
    assert found.figures["judged_nll"] == pytest.approx(nats / count, rel=1e-5)
    assert found.figures["written_tokens"] == pytest.approx(count / 3)
    assert [prompt for prompt, _ in found.texts] == ["ab", "bb", "ca"]


def test_as_many_prompts_as_asked_for_and_the_same_texts_each_time():
    student = actor(Student, 0)
    first = writing(student, once, Task("text"), prompts=2)
    assert len(first.texts) == 2
    assert "judged_nll" not in first.figures
    assert writing(student, once, Task("text"), prompts=2).texts == first.texts
    assert writing(student, once, Task("text"), prompts=3).texts[:2] == first.texts


@given(st.lists(TEXT, max_size=4), st.integers(1, 3))
def test_distinct_counts_runs(texts, n):
    runs = []
    for text in texts:
        for i in range(len(text) - n + 1):
            runs.append("-".join(map(str, text[i : i + n])))
    if not runs:
        assert math.isnan(distinct(texts, n))
    else:
        assert distinct(texts, n) == len(set(runs)) / len(runs)


def test_one_token_over_and_over_is_not_varied():
    assert distinct([[1] * 101], 2) == 0.01
    assert distinct([[1, 2, 3]], 2) == 1


def test_without_a_tokenizer_nothing_can_be_written():
    student = Student(Bigram(0), view="input_ids")
    with pytest.raises(RecipeError, match=r"student\.tokenizer=FOLDER"):
        writing(student, once, Task("text"))


def test_texts_stand_side_by_side():
    wrote = {
        name: writing(actor(Student, seed), once, Task("text")) for seed, name in enumerate(("teacher", "student"))
    }
    block = side_by_side(wrote, most=2)
    assert block["columns"] == ["teacher", "student"]
    assert block["values"][1][0] == wrote["teacher"].texts[1][1]
    assert len(block["rows"]) == 2
