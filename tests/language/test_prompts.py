"""Prompts out of columns and columns out of texts: one is the other's inverse; packed, empty and plain rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import END, PAD, Words, batch_of

from limbeck.errors import RecipeError
from limbeck.language.prompts import (
    UNCOUNTED,
    answers_of,
    choose_rows,
    columns_of,
    left_padded,
    prompt_lengths,
    renewed,
    with_answers,
    written_lengths,
)

words = st.lists(st.integers(2, 10), min_size=1, max_size=6)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_columns_made_of_texts_are_those_they_came_from(texts):
    batch = batch_of(texts)
    prompt, length = prompt_lengths(batch), batch["attention_mask"].sum(1)
    assert prompt.tolist() == [len(a) for a, _ in texts]
    spoilt = batch["input_ids"].where(batch["attention_mask"] == 1, 7)  # what is behind a text does not matter
    again = columns_of(spoilt, prompt, length, pad=PAD, pieces=Words().pieces)
    assert again.keys() == batch.keys() - {"id"}
    for name, value in again.items():
        assert torch.equal(value, batch[name]), name


def test_the_prompt_is_all_before_the_last_counted_run():
    """Two turns of an assistant: the first is part of the prompt of the second."""
    batch = batch_of([([2, 3, 4, 5, 6, 7], [8, END])])
    batch["target"][0, 1:3] = torch.tensor([4, 5])
    assert prompt_lengths(batch).tolist() == [6]


def test_a_row_without_counted_targets_is_a_prompt_as_a_whole():
    batch = batch_of([([2, 3], [4]), ([5, 6, 7], [8])])
    batch["target"][0] = UNCOUNTED
    assert prompt_lengths(batch).tolist() == [3, 3]


def test_plain_text_has_as_many_prompt_tokens_as_are_asked_for():
    batch = batch_of([([2], [3, 4, 5, 6]), ([2], [3]), ([2, 3], [4, 5, 6])])
    assert prompt_lengths(batch).tolist() == [1, 1, 2]
    assert prompt_lengths(batch, 3).tolist() == [3, 2, 2]


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=5), st.integers(1, 9))
def test_answers_are_exchanged(texts, width):
    old, new = (batch_of([(t[0], t[i]) for t in texts]) for i in (1, 2))
    answers, length = answers_of(new, width, PAD)
    assert [row[:n] for row, n in zip(answers.tolist(), length.tolist(), strict=True)] == [t[2][:width] for t in texts]
    assert answers.shape == (len(texts), width)
    cut = batch_of([(t[0], t[2][:width]) for t in texts])
    found = with_answers(old, prompt_lengths(old), answers, length, pad=PAD, pieces=Words().pieces)
    assert found.keys() == cut.keys()
    for name, value in found.items():
        assert torch.equal(value, cut[name]), name


def test_rows_that_cannot_be_continued_are_named():
    batch = batch_of([([2, 3], [4])], first=17)
    with pytest.raises(RecipeError, match=r"several packed documents.*data.pack=false"):
        prompt_lengths({**batch, "segment": torch.tensor([[0, 1, 1]])})
    assert prompt_lengths({**batch, "segment": torch.tensor([[0, 0, -1]])}).tolist() == [2]
    batch["attention_mask"][:] = 0
    with pytest.raises(RecipeError, match="row 17 is to be continued and holds no token"):
        prompt_lengths(batch)


def test_padding_moves_to_the_left():
    ids, mask = left_padded(torch.tensor([[2, 3, 9, 9], [4, 5, 6, 9]]), torch.tensor([2, 3]), PAD)
    assert ids.tolist() == [[PAD, 2, 3], [4, 5, 6]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_a_text_goes_up_to_its_first_end_with_it():
    written = torch.tensor([[5, END, 6, END], [END, PAD, PAD, PAD], [5, 6, 7, 8]])
    assert written_lengths(written, [END]).tolist() == [2, 1, 4]
    assert written_lengths(written, []).tolist() == [4, 4, 4]
    assert written_lengths(written, [END, 6]).tolist() == [2, 1, 2]


def test_log_probabilities_stand_where_their_token_is_predicted():
    ids, log_p = torch.tensor([[2, 3, 4, 5]]), torch.tensor([[-9.0, -9.0, -0.5, -0.25]])
    found = columns_of(ids, torch.tensor([2]), torch.tensor([4]), pad=PAD, log_probs=log_p)
    assert found["target"].tolist() == [[UNCOUNTED, 4, 5, UNCOUNTED]]
    assert found["old_log_probs"].tolist() == [[0.0, -0.5, -0.25, 0.0]]
    assert "answer_bytes" not in found


def test_a_row_that_is_all_prompt_counts_nothing():
    found = columns_of(torch.tensor([[2, 3]]), torch.tensor([2]), torch.tensor([2]), pad=PAD, pieces=Words().pieces)
    assert not found["answer"].any()
    assert found["answer_bytes"].tolist() == [0]


def test_what_described_the_old_text_goes_with_it():
    batch = batch_of([([2, 3], [4])]) | {
        "group": torch.zeros(1, 3),
        "teacher_input_ids": torch.zeros(1, 3),
        "teacher_group": torch.zeros(1, 3),
        "domain": torch.tensor([5]),
        "ghost": True,
    }
    assert renewed(batch, {"input_ids": torch.ones(1, 2)}).keys() == {"id", "domain", "ghost", "input_ids"}


def test_rows_are_chosen_from_two_batches_of_different_width():
    ours, theirs = batch_of([([2], [3]), ([4], [5])]), batch_of([([6], [7, 8]), ([9], [2, 3])], first=10)
    found = choose_rows(torch.tensor([True, False]), ours, theirs, PAD)
    assert found["input_ids"].tolist() == [[2, 3, PAD], [9, 2, 3]]
    assert found["target"].tolist() == [[3, UNCOUNTED, UNCOUNTED], [2, 3, UNCOUNTED]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found["answer"].tolist() == [[True, False, False], [True, True, False]]
    assert found["id"].tolist() == [0, 11]
