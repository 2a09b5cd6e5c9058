"""What the sections of a recipe share, and two of them: `task` and `data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from limbeck.data import columns
from limbeck.data.splits import is_split
from limbeck.errors import RecipeError
from limbeck.evaluation import quality
from limbeck.recipe.live import Absent, address, spell
from limbeck.recipe.text import phrase
from limbeck.tasks import KINDS, Task


def listed(value: Any) -> Any:
    """One where a list is expected is a list of one."""
    if value is None or isinstance(value, (list, tuple)):
        return value
    return [value]


def word(value: Any) -> str:
    """A name as the file has it: classes may be called 3 or true."""
    return value if isinstance(value, str) else phrase(spell(value))


def _texts(value: Any) -> Any:
    return [word(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def nothing(value: Any) -> Any:
    return {} if value is None else value


Labels = Annotated[list[str] | None, BeforeValidator(_texts), BeforeValidator(listed)]  # the last one acts first
Arguments = Annotated[dict[str, Any], BeforeValidator(nothing)]


class Section(BaseModel):
    """A part of a recipe; live objects stay what they are."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    def plain(self) -> dict[str, Any]:
        """As the file has it, every default written out, keys in their order."""
        return {name: _plain(getattr(self, name), name) for name in type(self).model_fields}

    def tree(self) -> dict[str, Any]:
        """The same with live objects in their places."""
        return {name: _tree(getattr(self, name)) for name in type(self).model_fields}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Section):
        return value.plain()
    if isinstance(value, dict) and any(isinstance(entry, Section) for entry in value.values()):
        return {key: entry.plain() for key, entry in value.items()}
    return spell(value, addresses=name != "args")


def _tree(value: Any) -> Any:
    if isinstance(value, Section):
        return value.tree()
    return {key: _tree(entry) for key, entry in value.items()} if isinstance(value, dict) else value


class TaskKeys(Section):
    """`{use, target, labels, metric, loss}`; what is None comes from the data (use, target, labels) or the task.

    Of generation also `classifier`: a model in whose features generated and real samples are compared.
    """

    use: str | Task | Absent | None = None
    target: str | None = None
    labels: Labels = None
    metric: str | None = None
    loss: Any = None
    classifier: str | None = None

    def plain(self) -> dict[str, Any]:
        found = super().plain()
        return found if self.classifier else {name: value for name, value in found.items() if name != "classifier"}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.classifier is not None and self.use != "generation":
            raise ValueError(
                "classifier belongs to task.use=generation: in its features generated samples are compared"
            )
        if isinstance(self.use, str):
            self.metric = self.metric or Task(self.use, classifier=self.classifier).metric
            quality.primary(self.metric, self.use)
        return self


class DataKeys(Section):
    """`{path, columns, split, id, args, skip_bad}`; of language tasks also `{length, pack}`, of generators `{encoded}`.

    `encoded`: the folder of a cache of their latents and encoded texts. `length`: the most tokens of a row; None: what the student can read. `pack`: several short texts in one row.
    """

    path: Any
    columns: dict[str, Any] | None = None
    split: str = "split"
    id: str | None = None
    args: Arguments = {}
    skip_bad: bool = False
    length: Annotated[int, Field(ge=2)] | None = None
    pack: bool = False
    encoded: str | None = None

    def plain(self) -> dict[str, Any]:
        found = super().plain()
        return found if self.encoded else {name: value for name, value in found.items() if name != "encoded"}

    @field_validator("path", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            raise RecipeError(f"needed is a path, module:function, or a Dataset given in Python, not {value!r}.")
        if isinstance(value, Mapping):
            return {str(split): cls._named(entry) for split, entry in value.items()}
        if isinstance(value, Path):
            return str(value)
        return (None if hasattr(value, "__getitem__") else address(value)) or value

    @field_validator("columns", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = {}
        for name, choice in value.items():
            guessed = choice is None or (isinstance(choice, Mapping) and "use" not in choice)
            try:
                found[str(name)] = choice if guessed else columns.of(choice).spec()
            except RecipeError as error:
                raise RecipeError(f"data.columns.{name}: {error}") from error
        return found


def open_task(value: Any) -> Any:
    """The mapping that a task's short form means; None where it is to come from the data."""
    if isinstance(value, Task) and type(value) is not Task:
        return {"use": value, "target": value.target, "labels": value.labels, "metric": value.metric}
    if isinstance(value, Task):
        own = value.function if value.function is not KINDS[value.name].loss else None
        return {"use": value.name, "target": value.target, "labels": value.labels, "metric": value.metric, "loss": own}
    return {"use": value} if isinstance(value, str) else nothing(value)


def open_data(value: Any) -> Any:
    """The mapping that a short form of data means: a path, a name, an object, or one of these for each split."""
    splits = isinstance(value, Mapping) and value and all(is_split(str(key)) for key in value)
    return value if isinstance(value, Mapping) and not splits else {"path": value}
