"""What generators make of a few rows, and the way from noise to there: kept beside a run, so that its report can show it.

A row has one noise and one condition for everyone. Of every network its samples are kept, and of the first rows the noisy sample
x_t and what was predicted of the data (x0) in every step. Points stay numbers; pictures become levels 0 to 255 of the data's range.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from limbeck.actors import Actor
from limbeck.data.tensors import Data
from limbeck.engine.validate import to_device
from limbeck.tasks import Task

FILE = "generated.safetensors"
POINTS, PICTURES = 400, 16  # rows of which samples are kept
WAYS = 6  # rows of which the way is kept
STEPS = 8  # steps of a way of pictures
LARGEST, LARGEST_ON_THE_WAY = 96, 48  # pixels of the longer side
LONGEST = 300  # letters of a condition
Values = Float[Tensor, "rows ..."]


class Course:
    """A `watch` of `solvers.sample`: x_t and x0 of some rows in every step, and where they ended.

    Of more than `most` steps every second one is let go, again and again; the first and the last one stay.
    """

    def __init__(self, rows: Sequence[int], most: int = 64) -> None:
        self.rows, self.most = list(rows), most
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._calls, self._stride = 0, 1
        self._newest: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.end: Tensor | None = None

    def __call__(self, x_t: Values, said: Any, x_s: Values) -> None:
        alpha, sigma = (values.flatten()[0].cpu() for values in (said.alpha, said.sigma))
        self._newest = (x_t[self.rows].cpu(), said.x0[self.rows].cpu(), alpha, sigma)
        self.end = x_s[self.rows].cpu()
        if self._calls % self._stride == 0:
            if len(self.steps) == self.most:
                del self.steps[1::2]
                self._stride *= 2
            if self._calls % self._stride == 0:
                self.steps.append(self._newest)
        self._calls += 1

    def thinned(self, most: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """At most so many steps, evenly taken; the first and the last one always."""
        assert self._newest is not None
        steps = self.steps if self.steps[-1] is self._newest else [*self.steps, self._newest]
        count = min(most, len(steps))
        return [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]


@dataclass(frozen=True)
class Generated:
    """What `FILE` holds.

    Attributes:
        kind: `points` in the plane, `pictures`, or `other`, of which nothing is kept to look at.
        shape: of one sample of the data.
        conditions: what each row was asked for, as text; empty where nothing is asked.
        classes: whether these are classes (not free texts).
        facts: of each role how it samples, its noise, and whether it began from the student's noise.
        tensors: `id` of the rows; `ways`, the places among them of those whose way is kept; `real` and `ROLE.samples` [rows, ...]; `ROLE.states` [ways, steps + 1, ...] (x_t from noise to sample, divided by
            sqrt(alpha^2 + sigma^2) where that is above 1), `ROLE.denoised` [ways, steps, ...] (x0) and `ROLE.times` [steps + 1], falling to 0.
    """

    kind: str = "other"
    shape: tuple[int, ...] = ()
    conditions: tuple[str, ...] = ()
    classes: bool = False
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file."""
        from safetensors.torch import save_file

        said: dict[str, Any] = {"kind": self.kind, "shape": self.shape, "conditions": self.conditions}
        said |= {"classes": self.classes, "facts": self.facts}
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, path, {"generated": json.dumps(said)})

    @classmethod
    def load(cls, path: Path) -> Generated:
        """Read the file; nothing, where there is none or it is not one of ours."""
        from safetensors import safe_open

        if not path.is_file():
            return cls()
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            try:
                said = json.loads((file.metadata() or {}).get("generated", "null"))
            except json.JSONDecodeError:
                said = None
            if not isinstance(said, dict):
                return cls()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = {str(role): dict(found) for role, found in said["facts"].items()}
        shape, conditions = tuple(said["shape"]), tuple(map(str, said["conditions"]))
        return cls(str(said["kind"]), shape, conditions, bool(said["classes"]), facts, tensors)

    def of(self, role: str, what: str = "samples") -> Tensor | None:
        """`samples`, `states`, `denoised` or `times` of a role; samples of `real` are the data."""
        return self.tensors.get("real" if role == "real" else f"{role}.{what}")


def record(
    path: Path, task: Task, data: Data, split: str, actors: Mapping[str, Actor | None], device: torch.device
) -> None:
    """Write what these generators make of rows spread over the split; a task that generates nothing leaves no file.

    Args:
        actors: by role, with `student` among them; those that are missing, stored, or several networks at once are left out.
    """
    if task.name != "generation":
        return
    rows = data.splits[split]
    shape = tuple(rows.__getitems__([0])[task.target].shape[1:])
    kind = kind_of(shape)
    count = min(POINTS if kind == "points" else PICTURES, len(rows))
    batch = to_device(rows.__getitems__(sorted(Random(0).sample(range(len(rows)), count))), device)
    real = batch[task.target].float().cpu()
    single = {role: a for role, a in actors.items() if a is not None and not a.stored and _is_single(a)}
    asked, classes = _conditions(single, batch, data.labels)
    ways, span = _apart(asked, count), span_of(real)
    tensors, facts, noises = {"id": batch["id"].cpu(), "ways": torch.tensor(ways)}, {}, {}
    if kind != "other":
        tensors["real"] = real if kind == "points" else levels(real, span)
    for role, actor in single.items():
        facts[role] = _facts(actor)
        if kind == "other":
            continue
        made, noises[role], course = generate(actor, batch, ways)
        facts[role]["latent"] = (z := noises[role]) is not None and z.shape != made.shape
        if kind_of(made.shape[1:]) == kind:
            tensors |= {f"{role}.{name}": values for name, values in _kept(actor, kind, made, course, span).items()}
    for role, z in noises.items():
        theirs = noises.get("student")
        facts[role]["same_noise"] = z is not None and theirs is not None and torch.equal(z, theirs)
    Generated(kind, shape, tuple(asked), classes, facts, tensors).save(path)


@torch.no_grad()
def generate(
    actor: Actor, batch: Mapping[str, Any], ways: Sequence[int]
) -> tuple[Values, Tensor | None, Course | None]:
    """The samples that an actor makes of a batch, the noise they began from, and the course of the rows `ways`.

    Those of a network that is no denoising network have neither noise nor course.
    """
    from limbeck.diffusion.network import DiffusionNetwork

    model = actor.model
    if not isinstance(model, DiffusionNetwork):
        return actor(batch)["generated"].float().cpu(), None, None
    args, kwargs = actor.shown(batch)
    call = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    z, course = model.noise_for(call.get("x"), call.get("id")), Course(ways)
    made = model.decoded(model.generate(z, model.understood(call.get("condition")), watch=course))
    return made.float().cpu(), z.cpu(), course


def kind_of(shape: Sequence[int]) -> str:
    """How samples of this shape are looked at: `points`, `pictures` (one or three channels), or not at all (`other`)."""
    if tuple(shape) == (2,):
        return "points"
    return "pictures" if len(shape) == 3 and shape[0] in (1, 3) else "other"


def span_of(real: Values) -> tuple[float, float]:
    """From black to white: [0, 1] or [-1, 1] where the data lie in there, else their own range."""
    low, high = float(real.min()), float(real.max())
    usual = ((a, b) for a, b in ((0.0, 1.0), (-1.0, 1.0)) if a - 0.05 <= low and high <= b + 0.05)
    return next(usual, (low, high if high > low else low + 1))


def levels(pictures: Float[Tensor, "*batch h w"], span: tuple[float, float]) -> UInt8[Tensor, "*batch h w"]:
    """Numbers as levels 0 to 255 of this range; what lies outside is held at its ends."""
    share = (pictures.nan_to_num() - span[0]) / (span[1] - span[0])
    return share.mul(255).round().clamp(0, 255).to(torch.uint8)


def shrunk(pictures: Float[Tensor, "n c h w"], largest: int) -> Float[Tensor, "n c h w"]:
    """Pictures whose longer side has at most so many pixels, each a mean over its place in the larger one."""
    height, width = pictures.shape[-2:]
    if max(height, width) <= largest:
        return pictures
    ratio = largest / max(height, width)
    return F.interpolate(pictures, size=[max(1, round(side * ratio)) for side in (height, width)], mode="area")


@torch.no_grad()
def _kept(actor: Actor, kind: str, made: Values, course: Course | None, span: tuple[float, float]) -> dict[str, Tensor]:
    """The tensors of one role."""
    plain = kind == "points"
    kept = {"samples": made if plain else levels(shrunk(made, LARGEST), span)}
    if course is None or course.end is None:
        return kept
    model: Any = actor.model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def seen(x: Tensor) -> Tensor:
        shown = model.decoded(x.to(device)).float().cpu()
        return shown if plain else levels(shrunk(shown, LARGEST_ON_THE_WAY), span)

    steps = course.thinned(course.most if plain else STEPS)
    states = [seen(x_t / max(1.0, math.hypot(float(alpha), float(sigma)))) for x_t, _, alpha, sigma in steps]
    times = _times(model.noise, torch.stack([sigma / alpha for *_, alpha, sigma in steps]))
    return kept | {
        "states": torch.stack([*states, seen(course.end)], 1),
        "denoised": torch.stack([seen(x0) for _, x0, *_ in steps], 1),
        "times": torch.cat([times.float(), torch.zeros(1)]),
    }


def _times(noise: Any, level: Float[Tensor, "steps"]) -> Float[Tensor, "steps"]:
    from limbeck.diffusion.times import time_of_level

    return time_of_level(noise, level.double())


def _apart(asked: Sequence[str], count: int) -> list[int]:
    """Rows whose way is kept: first those that are asked for something else than all before them."""
    first = [i for i in range(count) if not asked or asked[i] not in asked[:i]]
    return [*first, *(i for i in range(count) if i not in first)][:WAYS]


def _is_single(actor: Actor) -> bool:
    return len(getattr(actor, "members", ("itself",))) == 1


def _facts(actor: Actor) -> dict[str, Any]:
    """How a network samples, as far as it says so."""
    how, noise = (getattr(actor.model, name, None) for name in ("sampling", "noise"))
    found = {} if how is None else {"evaluations": how.evaluations} | asdict(how)
    return found | ({} if noise is None else {"noise": noise.spec()["use"]})


def _conditions(
    actors: Mapping[str, Actor], batch: Mapping[str, Any], labels: Mapping[str, Sequence[str]]
) -> tuple[list[str], bool]:
    """What each row is asked for in words, and whether that is a class; encoded texts have no words."""
    column = next(filter(None, (_condition(actors[role]) for role in ("student", *actors) if role in actors)), "")
    values = batch.get(column)
    if isinstance(values, Tensor) and values.dim() == 1 and not values.is_floating_point():
        names = labels.get(column) or ()
        return [str(names[k]) if 0 <= k < len(names) else str(k) for k in values.tolist()], True
    return ([str(text)[:LONGEST] for text in values], False) if isinstance(values, list) else ([], False)


def _condition(actor: Actor) -> str | None:
    """The column that tells a generator what to make: of its keyword `condition`, or its second one."""
    view = actor.view
    if view is None or "condition" in view.named:
        return None if view is None else view.named["condition"]
    return view.keys[1] if len(view.keys) > 1 else None
