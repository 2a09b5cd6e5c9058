"""Methods: who learns what, from which loss, in which order. They never call backward or step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from limbeck.actors import Actor, Student, Teacher
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.objectives import Loss, Objective, Term
from limbeck.options import Options
from limbeck.schedules import Scalar, to_schedule
from limbeck.signals import Signals
from limbeck.tasks import Task

Batch = dict[str, Any]


@dataclass(frozen=True)
class Play:
    """How the networks of a generator's method play together, in words: a row of the table in docs/methods.md.

    What the student is given, what its loss is, who trains besides, how the critic's updates stand to the student's, and
    from what it is best begun and with which data.
    """

    sampled: str
    loss: str
    trains: str
    ratio: str
    begins: str


@dataclass(frozen=True)
class Card:
    """What a person wants to know of a method before using it.

    `listed` is false for the inner stages of a procedure. `across_tokenizers`: teacher and student may split text differently. `needs` names the teacher's signals it reads; `teacher_mode` is `frozen`, `through`, or `none` (no teacher needed).
    """

    name: str
    summary: str = ""
    paper: str = ""
    needs: tuple[str, ...] = ("logits",)
    teacher_mode: str = "frozen"
    use_when: str = ""
    cost: str = ""
    evidence: str = ""
    listed: bool = True
    across_tokenizers: bool = False
    play: Play | None = None


@dataclass(frozen=True)
class Progress:
    """Where the stage stands: `step` of `steps` optimiser steps done, `epoch` of `epochs` under way."""

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1
    seed: int = 0

    @property
    def fraction(self) -> float:
        """How much of the stage is done, in [0, 1]."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True)
class Update:
    """One optimiser step: the trainee, a function from a batch to its `Loss`, and the batch.

    The function may be called on pieces of the batch and more than once; it changes no state. `combine` is an
    aggregator of `torchjd` for parts in conflict. `whole`: not a sum over samples (bilevel, unrolled), so never cut.
    """

    trainee: str
    loss: Callable[[Batch], Loss]
    batch: Mapping[str, Any]
    combine: Any = None
    whole: bool = False


@dataclass(frozen=True)
class Rebuilt:
    """The trainee's modules were operated on (pruned, grown): its optimiser is made anew."""

    trainee: str


@dataclass
class Outcome:
    """What an update did, over all pieces and processes: means of the parts, the gradient's norm, kept values per sample."""

    values: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    record: dict[str, Tensor] = field(default_factory=dict)


class Bound:
    """What the engine ties to a method or a procedure: student, teacher, task, data. Never registered as submodules."""

    student: ClassVar[Student]
    teacher: ClassVar[Teacher]  # None without a teacher, which a card that needs one rules out
    task: ClassVar[Task]  # None without a task
    data: ClassVar[Data]  # the stage's own: how many rows a memory needs, a further split to draw from
    progress: ClassVar[Progress]
    card: ClassVar[Card]

    def bind(self, student: Student, teacher: Teacher | None, task: Task | None) -> Self:
        """Tie student, teacher and task to this object; `setup` comes after the probe."""
        for name, value in (("student", student), ("teacher", teacher), ("task", task)):
            object.__setattr__(self, name, value)  # not setattr: nothing here is a submodule
        return self

    def look_at(self, data: Data) -> None:
        """Tie the data to this object."""
        object.__setattr__(self, "data", data)

    def prepare(self) -> None:
        """Before the probe: declare further taps here (`self.teacher.tap(name, path)`)."""


class Method(Options, Bound, nn.Module):
    """A way of teaching. Subclasses give a `card`, options as annotated class attributes, and a `loss` or a `learn`.

    Bridges, critics, tables and queues are attributes (modules, parameters, buffers), so that the method's part of a
    checkpoint is complete. `student`, `teacher` and `task` are bound by the engine.
    """

    def __init__(self, **options: Any):
        nn.Module.__init__(self)
        self._take(options, name_of(type(self)))
        self.notices: list[str] = []
        object.__setattr__(self, "progress", Progress())

    def setup(self) -> None:
        """Once bound and probed: build bridges, critics and buffers from `self.student.shapes` and `self.teacher.shapes`."""

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Who can learn: named groups of modules and parameters. Default: the student with this method's own modules."""
        return {"student": [self.student.model, self]}

    def lr_ratios(self) -> dict[str, float]:
        """By trainee: its learning rate over `train.lr`, where `train.trainees` gives it none of its own. Default: 1."""
        return {}

    def actors(self) -> list[Actor]:
        """Those through which the method asks networks of its own (a critic, a slow copy): spread, or computed twice, where the student is."""
        return []

    def loss(self, batch: Batch) -> Loss:
        """The loss of a batch or of a piece of one; changes no state and draws nothing at random."""
        raise RecipeError(f"{type(self).__name__} has neither a loss nor a learn of its own.")

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update | Rebuilt, Outcome, None]:
        """The order of play of one step: yield updates, get outcomes. Runs once per step, without a graph."""
        yield Update("student", self.loss, batch)

    def structure(self) -> dict[str, Any]:
        """Plain data that `restructure` needs before weights of an operated student or method can be loaded."""
        return {}

    def restructure(self, structure: dict[str, Any]) -> None:
        """Bring student and method into the shape that `structure` describes."""

    def selection(self, batch: Batch) -> Loss:
        """The validation loss: the student's own loss on the task."""
        return self.task.loss(self.student(batch), batch) if self.task is not None else self.loss(batch)

    def selects_by(self) -> Literal["metric", "loss"]:
        """What the best epoch is best in: the task's metric (the smaller validation loss where it ties), or that loss.

        A soft teacher makes a student less sure, so its cross-entropy is least long before its metric is best.
        """
        return "metric"

    def findings(self, batches: Callable[[], Iterator[Batch]]) -> list[dict[str, Any]]:
        """What this method wants the report to show, measured on validation batches: heatmaps, bars and tables."""
        return []


class Transfer(Method):
    """A method that is a sum of terms between teacher and student, plus the task's own loss. Transfers add up.

    `mask` names a column that says which samples, tokens or pixels the terms on logits compare: bool, or labels (those
    below zero do not count). None: all of them, also unlabelled ones.
    """

    weight: Scalar = 1.0
    task_weight: Scalar = 1.0
    mask: str | None = None  # None: what counts of the task (the answers, of a language task)

    def objective(self) -> Objective:
        """The terms. Default: none (the student learns the task alone)."""
        return Objective()

    def setup(self) -> None:
        self.terms = self.objective()
        mask = self.mask or (self.task.mask if self.task is not None else None)
        for term in self.terms.terms:
            if mask is not None and term.mask is None and term.student_reads == "logits":
                term.mask = mask
        target = self.task.target if self.task else "label"
        self.notices += self.terms.settle(self.student, self.teacher, target)

    def draw(self, batch: Batch) -> Batch:
        """Once per step, before the loss: what it needs of chance or of memory, as further columns of the batch."""
        return batch

    def keep(self, record: dict[str, Tensor]) -> None:
        """Once per step, after the update: what the loss recorded per sample, over all pieces and processes, to remember."""

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update | Rebuilt, Outcome, None]:
        outcome = yield Update("student", self.loss, self.draw(batch))
        self.keep(outcome.record)

    def teacher_reads(self) -> set[str]:
        """Which of the teacher's signals are read; it stops after the last of them."""
        return self.terms.teacher_reads

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        """The part of the loss that comes from the teacher."""
        return self.terms(student, teacher, batch, self.progress)

    def loss(self, batch: Batch) -> Loss:
        """weight * transfer + task_weight * task. The teacher runs first, so that its memory is free again."""
        reads = self.teacher_reads()
        teacher = self.teacher(batch, reads=reads) if self.teacher is not None and reads else Signals()
        student = self.student(batch)
        loss = to_schedule(self.weight)(self.progress) * self.transfer(student, teacher, batch) if reads else Loss()
        share = to_schedule(self.task_weight)(self.progress)
        if self.task is not None and self.task.target in batch and share != 0:
            loss = loss + share * self.task.loss(student, batch)
        return loss

    def __add__(self, other: Transfer | Term) -> Sum:
        return Sum([self, other])


class Sum(Transfer):
    """Several transfers at once: their terms add up, the task counts once, with the first-named weight."""

    card = Card("sum", "Several transfers added up.")

    def __init__(self, members: list[Transfer | Term]):
        super().__init__()
        self.members = nn.ModuleDict()
        flat: list[Transfer] = []
        for member in members:
            if isinstance(member, Sum):
                flat += list(member.members.values())  # type: ignore[arg-type]
            elif isinstance(member, Term):
                flat.append(Terms(member))
            elif isinstance(member, Transfer):
                if not adds_up(type(member)):
                    raise RecipeError(not_a_term(name_of(type(member))))
                flat.append(member)
            else:
                raise RecipeError(not_a_term(name_of(type(member))))
        for member in flat:
            name = name_of(type(member)) if not isinstance(member, Terms) else member.terms_given[0].name
            own = name.replace(".", "_")  # modules have no dots in their names
            if own in self.members:
                raise RecipeError(f"{name} stands twice in the sum; give it once, with its weight.")
            self.members[own] = member
        object.__setattr__(self, "task_weight", flat[0].task_weight)

    def bind(self, student: Student, teacher: Teacher | None, task: Task | None) -> Self:
        for member in self.members.values():
            member.bind(student, teacher, task)  # type: ignore[operator]
        return super().bind(student, teacher, task)

    def look_at(self, data: Data) -> None:
        for member in self._each():
            member.look_at(data)
        super().look_at(data)

    def prepare(self) -> None:
        for member in self._each():
            member.prepare()

    def setup(self) -> None:
        for member in self._each():
            member.setup()
            self.notices += member.notices

    def draw(self, batch: Batch) -> Batch:
        for member in self._each():
            object.__setattr__(member, "progress", self.progress)
            batch = member.draw(batch)
        return batch

    def keep(self, record: dict[str, Tensor]) -> None:
        for member in self._each():
            member.keep(record)

    def teacher_reads(self) -> set[str]:
        return {name for member in self._each() for name in member.teacher_reads()}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        loss = Loss()
        for name, member in self.members.items():
            object.__setattr__(member, "progress", self.progress)
            part = to_schedule(member.weight)(self.progress) * member.transfer(student, teacher, batch)  # type: ignore
            clash = part.parts.keys() & loss.parts.keys()
            loss = loss + Loss({(f"{name}.{n}" if n in clash else n): p for n, p in part.parts.items()}, part.record)
        return loss

    def _each(self) -> list[Transfer]:
        return list(self.members.values())  # type: ignore[arg-type]


class Terms(Transfer):
    """A bare term as a transfer, so that `KD() + Term(gap)` and `method=my_losses:gap` work."""

    card = Card("terms", "A loss function of the user's own.")

    def __init__(self, *terms: Term, **options: Any):
        super().__init__(**options)
        self.terms_given = list(terms)

    def objective(self) -> Objective:
        return Objective(*self.terms_given)


@dataclass
class StageResult:
    """What a stage gave: the selected epoch's validation loss and metric, and how long it took."""

    name: str
    loss: float | None = None
    metric: float | None = None
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    selected_epoch: int | None = None


@dataclass
class Stage:
    """One training with one method. `epochs`, `steps`, `data` and `train` override the recipe's for this stage."""

    name: str
    method: Method
    epochs: int | None = None
    steps: int | None = None
    data: Any = None
    train: dict[str, Any] = field(default_factory=dict)


class Procedure(Options, Bound):
    """Several trainings in a row: as a method yields updates, a procedure yields stages and receives their results."""

    def __init__(self, **options: Any):
        self._take(options, name_of(type(self)))
        self.notices: list[str] = []
        self.memory: dict[str, Any] = {}

    def remember(self, name: str, make: Callable[..., Any], *args: Any) -> Any:
        """What `make(*args)` gave the first time: tensors and plain data, kept in the checkpoint.

        A resumed run goes through `stages` again without training what is finished; whatever depends on networks or
        chance there (which rows come next) is asked through this, so that it is the same again.
        """
        if name not in self.memory:
            self.memory[name] = make(*args)
        return self.memory[name]

    def stages(self) -> Generator[Stage, StageResult, None]:
        """Yield the stages in order."""
        raise RecipeError(f"{type(self).__name__} has no stages of its own.")
        yield

    def __add__(self, other: object) -> None:
        raise RecipeError(not_a_term(name_of(type(self))))

    __radd__ = __add__


def adds_up(cls: type) -> bool:
    """Whether a transfer is a sum of terms: who learns, from what loss and in which order is no matter of its own."""
    own = (cls.learn, cls.loss, cls.trainees)  # type: ignore[attr-defined]
    return issubclass(cls, Transfer) and own == (Transfer.learn, Transfer.loss, Transfer.trainees)


def not_a_term(name: str) -> str:
    """The sentence for a sum with something that is no sum of terms."""
    return (
        f"'{name}' is a procedure of its own, not a sum of terms: it cannot be added to anything. Run it before or after with stages; "
        f"its options: limbeck methods {name}"
    )


def name_of(cls: type) -> str:
    """What people call a method: the name on its own card (not on that of a class it was derived from), else the class's."""
    card = vars(cls).get("card")
    return card.name if isinstance(card, Card) else cls.__name__
