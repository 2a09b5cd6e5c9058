"""A teacher's own tokens beside the student's: the same text in two tokenizations, with the chunks of bytes they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from limbeck.language.alignment import Tokenised, of_answers, within
from limbeck.language.chats import Encoded, Sample
from limbeck.language.tokens import Tokens

KINDS = {
    "teacher_ids": "int32",
    "teacher_counted": "uint8",
    "group": "int32",
    "teacher_group": "int32",
    "chunks": "int64",
}


@dataclass(frozen=True)
class Half:
    """One side of a document: a sample as tokens, and which of the tokens are kept and have to be predicted."""

    tokens: Tokens
    sample: Sample
    encoded: Encoded
    kept: Bool[np.ndarray, "tokens"]

    def tokenised(self) -> Tokenised:
        """This side as the alignment takes it."""
        ends = [self.tokens.spelt(end) for end in self.tokens.eos]
        answers = [_without(self.sample.text, span, ends) for span in self.sample.spans]
        special = self.tokens.is_special(self.encoded.ids)
        return Tokenised(self.sample.text, answers, self.encoded.ends, self.encoded.counted, special)


def _without(text: str, span: tuple[int, int], ends: Sequence[str]) -> tuple[int, int]:
    begin, stop = span
    found = next((end for end in ends if end and text.endswith(end, begin, stop)), "")
    return begin, stop - len(found)


def beside(student: Half, teacher: Half, stop: int) -> dict[str, Any]:
    """What the store keeps of a document's teacher side, and the chunks of both, for the student's first `stop` tokens.

    Where the student's document was cut, the teacher's ends with the last chunk that both have.
    """
    groups = of_answers(student.tokenised(), teacher.tokenised())
    mine, theirs = within(*groups, student.kept, teacher.kept)
    group = _spread(mine, student.kept)[:stop]
    teacher_group = _spread(theirs, teacher.kept)
    length = len(teacher_group)
    if stop < len(student.encoded.ids) and teacher.kept.any():
        length = (
            max(int(np.flatnonzero(teacher_group >= 0).max(initial=-1)), int(np.flatnonzero(teacher.kept)[0]) - 1) + 1
        )
    return {
        "teacher_ids": teacher.encoded.ids[:length],
        "teacher_counted": teacher.kept[:length],
        "group": group,
        "teacher_group": teacher_group[:length],
        "chunks": [int(group.max(initial=-1)) + 1],
    }


def _spread(group: Int64[np.ndarray, "kept"], kept: Bool[np.ndarray, "tokens"]) -> Int64[np.ndarray, "tokens"]:
    found = np.full(len(kept), -1, np.int64)
    found[kept] = group
    return found
