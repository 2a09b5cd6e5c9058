"""Small language models that write, and what a method that lets them needs: a situation by hand, and a whole run."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from harness import PLAIN
from torch import Tensor, nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.signals import Projection
from limbeck.tasks import Task

END, PAD, SIZE = 1, 0, 7


class Words:
    """Seven tokens: padding, an end, and five that spell one byte."""

    eos, pad, size = (END,), PAD, SIZE
    pieces = (b"", b"", b"c", b"d", b"e", b"f", b"g")

    def same_as(self, other: Any) -> bool:
        return isinstance(other, Words)


class Speaks(nn.Module):
    """The next word depends on the last two; logits as factors or multiplied out."""

    def __init__(self, width: int = 5, whole: bool = True, dropout: float = 0.0, sharp: float = 2.0):
        super().__init__()
        self.last, self.before = nn.Embedding(SIZE, width), nn.Embedding(SIZE, width)
        self.drop, self.head, self.whole, self.sharp = nn.Dropout(dropout), nn.Linear(width, SIZE), whole, sharp

    def forward(self, input_ids: Tensor) -> Any:
        before = nn.functional.pad(input_ids, (1, 0))[:, :-1]
        hidden = self.drop(torch.tanh(self.last(input_ids) + self.before(before)))
        found = Projection(hidden, self.head.weight, self.head.bias, scale=self.sharp)
        return found.materialise() if self.whole else found


def rows(count: int, first: int, seed: int) -> TensorSplit:
    """Prompts of two to four words, answers of one to four; every other answer has an end."""
    g = torch.Generator().manual_seed(seed)
    ids, mask = torch.full((count, 8), PAD), torch.zeros(count, 8, dtype=torch.int64)
    target, sizes = torch.full((count, 8), -100), torch.zeros(count, dtype=torch.int64)
    for i in range(count):
        prompt, answer = 2 + i % 3, 1 + i % 4
        text = torch.randint(2, SIZE, (prompt + answer,), generator=g)
        text[-1] = END if i % 2 else text[-1]
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
        target[i, prompt - 1 : len(text) - 1] = text[prompt:]
        sizes[i] = answer - i % 2
    columns = {"input_ids": ids, "attention_mask": mask, "target": target, "answer": target != -100}
    return TensorSplit({**columns, "answer_bytes": sizes}, first)


def talk(train: int = 22, **more: TensorSplit) -> Data:
    """22 training rows (steps of 8, 8 and 6 at the settings below), 12 for validation."""
    splits = {"train": rows(train, 0, 1), "validation": rows(12, 500, 2), **more}
    return Data(splits, {"input_ids": ""}, {}, source="talk")


def situation(
    *,
    whole: bool = True,
    student: Any = None,
    teacher: Any = None,
    data: Data | None = None,
    task: str = "chat",
    **train: Any,
) -> Situation:
    """Two epochs of three steps of plain gradient descent; the networks are the same each time."""
    torch.manual_seed(0)
    settings = TrainSettings(**(PLAIN | {"epochs": 2, "batch_size": 8, "lr": 0.5} | train))
    ours = Student(student or Speaks(whole=whole), view="input_ids")
    theirs = Teacher(teacher or Speaks(6, whole=whole), view="input_ids")
    ours._tokenizer = theirs._tokenizer = Words()
    return Situation(ours, theirs, Task(task), data or talk(), settings, seed=5)


def settled(method: Method, where: Situation, count: int = 8) -> dict[str, Any]:
    """Bind and set up; gives the first training rows as a batch."""
    settle(method, where)
    return where.data["train"].__getitems__(list(range(count)))


def doubled(where: Situation) -> Situation:
    """Both networks in float64."""
    for actor in (where.student, where.teacher):
        assert actor is not None
        actor.model.double()
    return where


@cache
def chat_models() -> Any:
    """The example that makes chat models on the spot."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        import tiny_chat_models
    finally:
        sys.path.pop(0)
    return tiny_chat_models


def folders(out: Path) -> dict[str, Path]:
    """A teacher and two students, one of them with a tokenizer of bytes, untrained, and a file of 24 chats."""
    tiny = chat_models()
    talks = tiny.chats(24, seed=0)
    (out / "chat.jsonl").write_text("\n".join(json.dumps(talk) for talk in talks))
    texts = [message["content"] for talk in talks for message in talk["messages"]]
    torch.manual_seed(0)
    shared, own = tiny.tokenizer(texts, 300), tiny.tokenizer(texts, 256 + len(tiny.SPECIAL))
    for name, tokens, width in (("teacher", shared, 32), ("student", shared, 16), ("other", own, 16)):
        tiny.model(tokens, width, 1).save_pretrained(out / name)
        tokens.save_pretrained(out / name)
    return {name: out / name for name in ("teacher", "student", "other")} | {"data": out / "chat.jsonl"}


def distilled(method: Any, out: Path, *, student: str = "student", **keys: Any) -> limbeck.Run:
    """Two steps through the front door, with transformers, tokenizers and a chat template."""
    at = folders(out)
    train = {"steps": 2, "batch_size": 4, "lr": 1e-3}
    return limbeck.distill(
        task="chat",
        data=str(at["data"]),
        teacher=str(at["teacher"]),
        student=str(at[student]),
        method=method,
        train=train,
        control="none",
        evaluate=["quality"],
        out=out / "run",
        **keys,
    )
