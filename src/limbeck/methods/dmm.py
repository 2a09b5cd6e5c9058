"""DMM: several denoisers become one that is told whose answer to give (Song et al. 2025)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from limbeck.actors import Actor
from limbeck.data.tensors import TensorSplit
from limbeck.diffusion.method import DiffusionMethod, Values
from limbeck.diffusion.styles import STYLE
from limbeck.diffusion.times import TimesOption, Uniform
from limbeck.errors import RecipeError, nearest
from limbeck.losses.scores import per_sample
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss
from limbeck.sources import operate


class DMM(DiffusionMethod):
    """E |S(x_t, t, c, k) - R_k(x_t, t, c)|^2 in the student's own head (`weighting`) + feature_weight mean_l |h_l(S) - h_l(R_k)|^2, k a teacher per sample.

    k is the number in the column `column`, or drawn evenly. The student is told k by a row that begins at zero, added at `place`
    (None: where it embeds its time); in the paper a network stands behind the rows. Sampled, it speaks as `speaks_as`: a teacher's
    name, or weights of the rows in their order (None: the first). `layers` are paths in all networks; None: the student's middle, where all have
    it, without it no features. c is dropped for both with probability `drop`. It saves no steps: distil the result again.
    """

    card = Card(
        "dmm",
        summary="Several diffusion models of one kind become one, which keeps their styles apart and mixes them on demand.",
        paper="Song et al.: DMM, Building a Versatile Image Generation Model via Distillation-Based Model Merging, arXiv 2504.12364",
        needs=("prediction",),
        use_when="several fine-tuned diffusion models are to be one, with data that all of them know (teacher.members)",
        play=Play(
            sampled="data, noised to any time, and a teacher's number",
            loss="squared error against that teacher's head and features",
            trains="the student",
            ratio="",
            begins="a common ancestor; data all teachers know",
        ),
        cost="one forward and backward pass, and each sample's own teacher's forward pass (two with guidance); memory for all teachers",
    )

    several: ClassVar[bool] = True
    sampling_steps: Annotated[int, Field(ge=1)] = 20
    solver: Literal["renoise", "ddim", "heun"] = "heun"
    times: TimesOption = Uniform()
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    feature_weight: Annotated[float, Field(ge=0)] = 0.002
    layers: list[str] | None = None
    column: str | None = None
    speaks_as: str | list[float] | None = None
    place: str | None = None

    def prepare(self) -> None:
        super().prepare()
        actors: list[Actor] = [self.student, *self.teacher.members.values()]
        middle: str | None = getattr(self.student.model, "middle", None)
        shared = [middle] if middle and all(middle in dict(a.model.named_modules()) for a in actors) else []
        paths = shared if self.layers is None else self.layers
        self.heard = {f"merged.{path}": path for path in paths if self.feature_weight}
        for actor in actors:
            for name, path in self.heard.items():
                actor.tap(name, path)

    def setup(self) -> None:
        names = list(self.teacher.members)
        whose = names[0] if self.speaks_as is None else self.speaks_as
        usual = whose if isinstance(whose, list) else [float(name == whose) for name in names]
        if len(usual) != len(names) or not any(usual):
            raise RecipeError(
                f"method.speaks_as={whose!r}: needed is a teacher's name or one weight for each of {', '.join(names)}. {nearest(str(whose), names)}"
            )
        operate(self.student.source, "limbeck.diffusion.styles:learn_styles", {"usual": usual, "place": self.place})
        self.student.listen_again()
        super().setup()
        self.merged = list(self.references.values())
        if self.column is not None:
            self._look_at_styles(self.column, names)

    def _look_at_styles(self, column: str, names: list[str]) -> None:
        """A column that is not there, or does not hold numbers of teachers, is refused."""
        needed = (
            f"Needed is the number of each row's teacher: {', '.join(f'{k} {name}' for k, name in enumerate(names))}."
        )
        batch, splits = self.example(), self.data.splits.items()
        if column not in batch:
            there = [name for name in batch if name != "id"]
            raise RecipeError(f"method.column '{column}' is no column of the data. {nearest(column, there)} {needed}")
        held = {n: s.tensors[column] for n, s in splits if isinstance(s, TensorSplit) and column in s.tensors}
        for split, style in (held or {"train": batch[column]}).items():
            if not isinstance(style, Tensor) or style.dim() != 1 or bool((style != style.long()).any()):
                raise RecipeError(f"method.column '{column}' does not hold one whole number per row. {needed}")
            low, high = int(style.min()), int(style.max())
            if low < 0 or high >= len(names):
                raise RecipeError(
                    f"method.column '{column}' goes from {low} to {high} in the split {split}, and there are {len(names)} teachers. {needed}"
                )
        said = self.data.labels.get(column)
        if said and sorted(said) == sorted(names) and said != names:
            raise RecipeError(
                f"method.column '{column}' counts {', '.join(said)}, and the teachers stand in the order {', '.join(names)}. Give teacher.members in the order of the column."
            )

    def begin(self, batch: Batch) -> Batch:
        batch = super().begin(batch)
        for k, member in enumerate(self.merged):
            batch |= {f"teacher{k}.{name}": v for name, v in member.shown(batch, data=False)[1].items()}
        count = len(self.merged)
        style = (self.uniform(batch) * count).long() if self.column is None else batch[self.column].long()
        return batch | {f"student.{STYLE}": style}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= {"noise": self.fresh(batch), "time": self.drawn(batch)}
        if self.drop and all(who.model.guidable for who in (self.generator, *self.merged)):
            batch["drop"] = self.uniform(batch) < self.drop
        yield Update("student", self.loss, batch)

    def loss(self, batch: Batch) -> Loss:
        t = batch["time"]
        x_t = self.noise.renoise(batch["x0"], t, batch["noise"])
        target, features = self.answers(x_t, batch)
        said = self.generator(x_t, t, self.given(batch, "student"), drop=batch.get("drop"))
        loss = Loss.mean("merging", self.error(said, target, t))
        if not features:
            return loss
        apart = [per_sample((self.generator.heard[name] - h).square()) for name, h in features.items()]
        return loss + self.feature_weight * Loss.mean("features", torch.stack(apart).mean(0))

    @torch.no_grad()
    def answers(self, x_t: Values, batch: Batch) -> tuple[Values, dict[str, Tensor]]:
        """What each sample's own teacher says of it, and what was heard in it on the way."""
        style: Int64[Tensor, "batch"] = batch[f"student.{STYLE}"]
        found, places = [], [torch.nonzero(style == k).flatten() for k in range(len(self.merged))]
        if sum(map(len, places)) < len(style):  # rows that are read one by one could not be looked at before
            raise RecipeError(
                f"method.column '{self.column}' holds {sorted(set(style.tolist()))}, and there are {len(places)} teachers, numbered from 0."
            )
        for k, member in enumerate(self.merged):
            if not len(own := places[k]):
                continue
            part = {name: v[own] for name, v in batch.items() if isinstance(v, Tensor) and v.dim()}
            given, drop = self.given(part, f"teacher{k}"), part.get("drop")
            said = member(x_t[own], part["time"], given, guidance=part.get("guidance"), drop=drop)
            found.append({"": said.x0} | {name: member.heard[name] for name in self.heard})
        back = torch.cat(places).argsort()
        whole = {name: torch.cat([f[name] for f in found])[back] for name in found[0]}
        return whole.pop(""), whole
