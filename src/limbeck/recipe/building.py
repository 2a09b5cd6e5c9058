"""From the keys of a recipe to the objects of a run; what the keys leave open is decided by the data, and said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal

import torch

from limbeck.actors import Teacher
from limbeck.data.load import load_data
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError, nearest
from limbeck.evaluation.speculative import unfit
from limbeck.recipe.live import Absent
from limbeck.recipe.networks import MixtureKeys, NetworkKeys, TeacherKeys
from limbeck.recipe.sections import DataKeys, TaskKeys
from limbeck.sources import import_from
from limbeck.tasks import GENERATED, LANGUAGE, Task

_LOADED: ContextVar[dict[str, Data] | None] = ContextVar("_LOADED", default=None)
LONGEST = 2048
"""The most tokens of a row where the recipe does not say (`data.length`) and the student could read more."""
METHODS = {
    "classification": "kd",
    "regression": "limbeck.losses:mse",
    "chat": "forward-kl",
    "text": "forward-kl",
    "generation": "dmd2",
}


@contextmanager
def each_data_once(most: int = 4) -> Iterator[None]:
    """Inside this block data of the same keys are loaded once: for many runs on the same data, whose rows nobody changes.

    Args:
        most: how many are held at once; the first loaded goes first.
    """
    token = _LOADED.set(_Few(most))
    try:
        yield
    finally:
        _LOADED.reset(token)


class _Few(dict[str, Data]):
    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __setitem__(self, key: str, value: Data) -> None:
        while len(self) >= self.most:
            del self[next(iter(self))]
        super().__setitem__(key, value)


def data(keys: DataKeys, only: str | None = None) -> Data:
    """Load the data (`only` one split of them, if that is all there need be), or take those that were given in Python."""
    loaded = _LOADED.get()
    if loaded is None or not isinstance(keys.path, str):
        return _load(keys, only)
    mark = json.dumps([keys.model_dump(mode="json"), only], default=repr)
    if mark not in loaded:
        loaded[mark] = _load(keys, only)
    return loaded[mark]


def _load(keys: DataKeys, only: str | None) -> Data:
    path = keys.path
    if isinstance(path, Absent):
        raise path.refuse("data.path")
    args: dict[str, Any] | None = keys.args or None
    if callable(path) and not hasattr(path, "__getitem__"):
        path, args = path(**keys.args), None
    found = load_data(
        path, columns=keys.columns, split=keys.split, id=keys.id, args=args, skip_bad=keys.skip_bad, only=only
    )
    if keys.encoded is None:
        return found
    from limbeck.diffusion.encoded import opened

    return replace(found, encoded=opened(keys.encoded, found))


def language(keys: TaskKeys, found: Data) -> Literal["chat", "text"] | None:
    """`chat` or `text` where that is the task, said or seen from the columns; None for all others and for read data."""
    if "input_ids" in found.columns:
        return None
    said = keys.use.name if isinstance(keys.use, Task) else keys.use
    if said is None and keys.target is None and not found.labels:
        columns = found.columns.keys() - {"id"}
        said = "chat" if "messages" in columns else "text" if columns in ({"text"}, {"prompt", "completion"}) else None
    return "chat" if said == "chat" else "text" if said == "text" else None


def read(
    found: Data,
    task: Literal["chat", "text"],
    keys: DataKeys,
    student: NetworkKeys | None,
    teacher: TeacherKeys | MixtureKeys | None,
) -> Data:
    """The data as tokens: the student's own, and those of a teacher that splits text otherwise.

    Raises:
        RecipeError: nobody knows a tokenizer, or the rows hold no text.
    """
    from limbeck.language.reading import read as as_tokens

    members = teacher.members.values() if isinstance(teacher, MixtureKeys) else [teacher] if teacher else []
    theirs = [tokens for member in members if (tokens := member.tokens()) is not None]
    ours = student.tokens() if student is not None else None
    if ours is None and not theirs:
        raise RecipeError(
            f"task={task} reads texts as tokens, and no tokenizer lies beside the student. Say where it is: "
            "student.tokenizer=FOLDER"
        )
    ours = ours or theirs[0]
    others = [tokens for tokens in theirs if not tokens.same_as(ours)]
    if len({tokens.fingerprint for tokens in others}) > 1:
        raise RecipeError(
            "the teachers have several tokenizers that are not the student's; give one such teacher at most."
        )
    length = keys.length or min((student.context() if student is not None else None) or LONGEST, LONGEST)
    return as_tokens(found, ours, others[0] if others else None, length=length, pack=keys.pack, task=task)


def task(keys: TaskKeys, found: Data) -> Task:
    """The task; kind, target and class names that the keys leave open come from the data.

    Raises:
        RecipeError: the target is no column, or the data do not tell what the task is.
    """
    if isinstance(keys.use, Task):
        return keys.use
    for name in ("use", "loss"):
        if isinstance(getattr(keys, name), Absent):
            raise getattr(keys, name).refuse(f"task.{name}")
    assert not isinstance(keys.use, Absent)
    row = found.splits[next(iter(found.splits))].__getitems__([0])
    speaks = keys.use in LANGUAGE
    made = next((name for name in GENERATED if name in row), None) if keys.use == "generation" else None
    target = keys.target or ("target" if speaks else made or _target(found, row))
    if target not in row:
        raise RecipeError(f"task.target '{target}' is not a column of the data. {nearest(target, set(row) - {'id'})}")
    loss = import_from(keys.loss, "task.loss") if isinstance(keys.loss, str) else keys.loss
    labels = keys.labels or found.labels.get(target)
    return Task(
        keys.use or _kind(row[target], target),
        target=target,
        labels=labels,
        loss=loss,
        metric=keys.metric,
        classifier=keys.classifier,
    )


def method(use: str | None, *, teacher: bool) -> str:
    """The method of a recipe that names none."""
    if not teacher:
        return "denoising" if use == "generation" else "supervised"
    if use not in METHODS:
        raise RecipeError(
            f"the recipe names no method, and there is no default for {use or 'a task that is not known'}: method=..."
        )
    return METHODS[use]


def refuse_draft(student: NetworkKeys, teacher: Teacher | None, task: str | None) -> None:
    """Refuse the check `speculative` where the student could not draft for this teacher.

    Raises:
        RecipeError: why it could not.
    """
    why = unfit(student.tokens(), teacher, task)
    if why is not None:
        raise RecipeError(f"evaluate: {why}")


def _target(found: Data, row: dict[str, Any]) -> str:
    if "label" in row:
        return "label"
    if len(found.labels) == 1:
        return next(iter(found.labels))
    listed = ", ".join(found.labels or sorted(set(row) - {"id"}))
    raise RecipeError(
        f"the data do not say what is to be learned; say which column it is, of {listed}: task.target=..."
    )


def _kind(values: Any, target: str) -> str:
    if isinstance(values, torch.Tensor) and values.dim() == 1:
        return "regression" if values.is_floating_point() else "classification"
    raise RecipeError(
        f"the column '{target}' is neither a label nor a number per sample; say what the task is: task=..."
    )
