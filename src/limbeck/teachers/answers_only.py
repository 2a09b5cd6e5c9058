"""What teachers have in common that only answer: their answers were stored, or come from somewhere else."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from torch import nn

from limbeck.actors import Batch, Replace, Teacher
from limbeck.errors import RecipeError
from limbeck.signals import Place
from limbeck.sources import Source


class AnswersOnly(Teacher):
    """A teacher that gives signals and has no network here: nothing goes through it, it never learns, a copy is itself.

    Subclasses call `_stand_in` in place of `Teacher.__init__`, and `_only_read` before they answer.
    """

    only: str
    """Half a sentence for whoever wants more: `an endpoint gives answers only`."""
    itself = "the teacher itself"
    """What could do more."""
    holds: list[str]
    """The signals that it gives."""

    def _stand_in(self, called: str, said: str, folder: Path | None = None) -> None:
        """What an actor has, where there is no network: `called` stands for its class in figures and reports.

        Args:
            said: where the answers come from.
            folder: where they lie, so that a recipe can name them.
        """
        self.model = type(called, (_Absent,), {})()
        spec = None if folder is None else {"model": str(folder)}
        self.source = _Told(self.model, spec, None if folder is None else folder.resolve())
        self.source.said = said
        self.places: dict[str, Place] = {}
        self.paths: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.may_stop_early = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    @property
    def mode(self) -> Literal["frozen", "through"]:  # type: ignore[override]
        """`frozen`: nothing goes through it."""
        return "frozen"

    @mode.setter
    def mode(self, value: str) -> None:
        if value == "through":
            raise RecipeError(
                f"this method works inside the teacher (features are replaced, or gradients go through it), and {self.only}. "
                f"Use a method that reads them (kd), or {self.itself}"
            )

    @property
    def learning(self) -> bool:  # type: ignore[override]
        """Never."""
        return False

    @learning.setter
    def learning(self, value: bool) -> None:
        if value:
            raise RecipeError(f"this method trains the teacher, and {self.only}. Use {self.itself}")

    def _only_read(self, replace: Replace | None, until: str | None, reads: Collection[str] | None) -> None:
        """Refuse what a call can ask of a network and not of answers.

        Raises:
            RecipeError: something is to be done inside it, or a signal that it does not give is read.
        """
        if replace or until is not None:
            what = f"replaces '{next(iter(replace))}'" if replace else f"stops at '{until}'"
            raise RecipeError(f"the method {what} inside the teacher, and {self.only}. Use {self.itself}")
        for name in reads or ():
            if name not in self.holds:
                raise RecipeError(self.lacks(name))

    def parameters_count(self) -> int:
        """Not known, where nobody says; 0."""
        return 0

    def bytes_count(self) -> int:
        """Not known, where nobody says; 0."""
        return 0

    def listen_again(self) -> None:
        """Nothing to do: there is no network that could change."""

    def shown(self, batch: Batch) -> NoReturn:
        """Nothing is shown to a network here."""
        raise RecipeError(f"{self.only}; there is no network here, and it is shown nothing.")


class _Absent(nn.Module):
    """Stands where a teacher has its network."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """There is none."""
        raise RecipeError("of this teacher there are answers and no network to run here: ask the teacher.")


class _Told(Source):
    """Where answers come from."""

    said = ""

    def describe(self) -> str:
        """As it was told."""
        return self.said
