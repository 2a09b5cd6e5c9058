"""A student of letters and a teacher of pairs of letters on the same answers, with columns made by hand."""

from __future__ import annotations

import itertools

import torch

from limbeck import Student, Task, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.signals import Projection

LETTERS = "ab c"
OURS = [b"", b"a", b"b", b" ", b"c"]  # 0 ends a text
THEIRS = [b"", *(x.encode() for x in LETTERS), *("".join(p).encode() for p in itertools.product("ab ", "abc"))]
END = 0


class Words:
    """What is read of a tokenizer."""

    def __init__(self, pieces: list[bytes]):
        self.pieces, self.eos, self.pad, self.size = pieces, (END,), END, len(pieces)

    def same_as(self, other: Words) -> bool:
        return self.pieces == other.pieces


class Speaker(torch.nn.Module):
    """A language model of one layer that reads the token before, too; its logits are given as factors or multiplied out."""

    def __init__(self, classes: int, width: int, *, whole: bool = False):
        super().__init__()
        self.read = torch.nn.Embedding(classes, width)
        self.head = torch.nn.Linear(width, classes)
        self.whole = whole

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.read

    def forward(self, input_ids):
        x = self.read(input_ids)
        found = Projection(torch.tanh(x + 0.5 * x.roll(1, 1)), self.head.weight, self.head.bias)
        return {"logits": found.materialise() if self.whole else found}


def side(pieces: list[bytes], prompt: str, answer: str, size: int | None = None) -> tuple[list[int], list[int]]:
    """Tokens of a prompt (letter by letter) and of an answer, longest first or letter by letter; where each ends."""
    number = {piece: i for i, piece in enumerate(pieces) if piece}
    ids = [number[letter.encode()] for letter in prompt]
    ends, at = [], 0
    while at < len(answer):
        piece = next(answer[at : at + n] for n in (size or 2, 1) if answer[at : at + n].encode() in number)
        ids.append(number[piece.encode()])
        at += len(piece)
        ends.append(at)
    return [*ids, END], [*ends, -1]


def batch(answers: list[tuple[str, str]], *, ours: list[bytes] = OURS, theirs: list[bytes] | None = THEIRS) -> dict:
    """The columns of prompts and answers: the student letter by letter, the teacher in the longest tokens it has."""
    rows: dict[str, list[tuple[list[int], int, list[int]]]] = {"": [], "teacher_": []}
    for prompt, answer in answers:
        a, ends_a = side(ours, prompt, answer, 1)
        b, ends_b = side(theirs or ours, prompt, answer, 2 if theirs else 1)
        shared = sorted(set(ends_a) & set(ends_b) - {-1})
        last = len(shared)
        for key, ids, ends in (("", a, ends_a), ("teacher_", b, ends_b)):
            group = [last if e < 0 else sum(s < e for s in shared) for e in ends]
            rows[key].append((ids, len(prompt), group))
    found: dict[str, torch.Tensor] = {}
    for key, many in rows.items():
        if key and theirs is None:
            continue
        width = max(len(ids) for ids, _, _ in many)
        ids = torch.zeros(len(many), width, dtype=torch.int64)
        target, group, mask = torch.full_like(ids, -100), torch.full_like(ids, -1), torch.zeros_like(ids)
        for row, (tokens, begin, numbers) in enumerate(many):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
            target[row, begin - 1 : len(tokens) - 1] = torch.tensor(tokens[begin:])
            group[row, begin - 1 : len(tokens) - 1] = torch.tensor(numbers)
        found |= {f"{key}input_ids": ids, f"{key}attention_mask": mask, f"{key}target": target}
        found |= {f"{key}answer": target >= 0} | ({f"{key}group": group} if theirs is not None else {})
    spelt = torch.tensor([len(answer) for _, answer in answers])
    return found | {"answer_bytes": spelt, "id": torch.arange(len(answers))}


ANSWERS = [("ab", "ab ca"), ("c", "aab b"), ("a b", "c"), ("b", "ba ab a")]


def pair(
    *, whole: bool = False, ours: list[bytes] = OURS, theirs: list[bytes] = THEIRS, width: int = 5
) -> tuple[Student, Teacher]:
    torch.manual_seed(0)
    student, teacher = Speaker(len(ours), 3, whole=whole), Speaker(len(theirs), width, whole=whole)
    actors = Student(student.double()), Teacher(teacher.double())
    for actor, pieces in zip(actors, (ours, theirs)):
        actor._tokenizer = Words(pieces)
    return actors


def bound(method, student: Student, teacher: Teacher, own: dict):
    """The method with its actors, settled on these columns."""
    for actor in (student, teacher):
        actor.probe(own)
    split = TensorSplit({k: v for k, v in own.items() if k != "id"})
    method.bind(student, teacher, Task("text"))
    method.look_at(Data({"train": split, "validation": split}, dict.fromkeys(own, ""), {}, source="by hand"))
    method.setup()
    return method
