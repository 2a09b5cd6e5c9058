"""A teacher's tokens beside the student's, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from saved_tokenizers import LLAMA, bytes_only

from limbeck.language.beside import Half, beside
from limbeck.language.chats import Encoded, Sample, answered, chat, encode
from limbeck.language.tokens import Tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return Tokens.load(bytes_only(tmp_path_factory.mktemp("beside"), template=LLAMA))


def half(tokens: Tokens, sample: Sample, ends: list[int], kept: list[bool] | None = None) -> Half:
    """A side whose tokens end at these bytes, and then the end token."""
    ids = np.array([*(20 + n for n in range(len(ends))), tokens.eos[0]])
    begin = len(sample.text[: sample.spans[0][0]].encode())
    counted = np.array([end > begin for end in ends] + [True])
    code = Encoded(ids, counted, np.zeros(len(ids), np.int64), np.array([*ends, ends[-1]]))
    return Half(tokens, sample, code, counted if kept is None else np.array(kept))


def test_chunks_of_an_answer(tokens: Tokens) -> None:
    """`ab|cd` as `ab|c|d` and as `a|b|cd`: two chunks, and the end."""
    sample = answered("??", "abcd")
    found = beside(half(tokens, sample, [2, 4, 5, 6]), half(tokens, sample, [1, 2, 3, 4, 6]), 5)
    assert found["group"].tolist() == [-1, 0, 1, 1, 2]
    assert found["teacher_group"].tolist() == [-1, -1, 0, 0, 1, 2]
    assert found["chunks"] == [3]
    assert found["teacher_ids"].tolist() == [20, 21, 22, 23, 24, 2]
    assert found["teacher_counted"].tolist() == [False, False, True, True, True, True]


def test_a_chunk_of_which_a_part_is_cut_off_is_none(tokens: Tokens) -> None:
    """The student's row ends after `ab|c`: `cd` is no longer the same on both sides, and the teacher stops before it."""
    sample = answered("??", "abcd")
    mine = half(tokens, sample, [2, 4, 5, 6], kept=[False, True, True, False, False])
    found = beside(mine, half(tokens, sample, [1, 2, 3, 4, 6]), 3)
    assert found["group"].tolist() == [-1, 0, -1]
    assert found["teacher_group"].tolist() == [-1, -1, 0, 0]
    assert found["chunks"] == [1]


def test_a_first_token_that_nothing_predicts(tokens: Tokens) -> None:
    """`ab|c` and `a|b|c` without anything before: `ab` is no target of the student, so `b` alone is no chunk."""
    sample = Sample("abc", [(0, 3)], back=True)
    mine = half(tokens, sample, [2, 3], kept=[False, True, True])
    theirs = half(tokens, sample, [1, 2, 3], kept=[False, True, True, True])
    found = beside(mine, theirs, 3)
    assert found["group"].tolist() == [-1, 0, 1]
    assert found["teacher_group"].tolist() == [-1, -1, 0, 1]


def test_nothing_in_common(tokens: Tokens) -> None:
    """A row that is cut before the first chunk is whole keeps the teacher's question, and no chunk."""
    sample = answered("??", "abcd")
    mine = half(tokens, sample, [2, 6], kept=[False, False, False])
    found = beside(mine, half(tokens, sample, [2, 4, 6]), 1)
    assert found["group"].tolist() == [-1]
    assert found["teacher_ids"].tolist() == [20]
    assert found["chunks"] == [0]


def test_end_tokens_are_not_text_of_an_answer(tokens: Tokens) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}]
    sample = chat(tokens, said)
    (code,) = encode(tokens, [sample])
    side = Half(tokens, sample, code, code.counted).tokenised()
    assert [sample.text[slice(*answer)] for answer in side.answers] == ["yes"]
    assert [tokens.decode([i]) for i in code.ids[side.final & side.counted]] == ["<|eot_id|>"]
