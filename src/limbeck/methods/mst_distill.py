"""MST-Distill: a mixture of specialised teachers for cross-modal distillation (ACM MM 2025, arXiv 2507.07015).

Three stages. Co-training: teachers and student learn together, every pair pulled together by a symmetric KL. Masks:
each teacher gets a few small attention masks, one inside one layer each, trained so that the masked teacher moves
towards the student (what the student cannot represent is suppressed). Routing: a gate looks at the student's logits
and picks per sample the top k of the masked ("specialised") teachers to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from limbeck.actors import Teacher
from limbeck.data.collate import pick
from limbeck.errors import RecipeError, nearest
from limbeck.losses import balance_cv, balance_kl, kl
from limbeck.method import Batch, Card, Method, Outcome, Procedure, Progress, Stage, StageResult, Update
from limbeck.models.masks import Gate, MaskNet
from limbeck.objectives import Loss
from limbeck.schedules import Scalar, Step

MASKABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Experts(nn.Module):
    """The specialised teachers: each a teacher with one of its layers masked.

    `accumulate` masks the j-th expert of a teacher at its layers 1 to j, as the published code does; otherwise each
    expert has its own mask alone, as the masks were trained.
    """

    def __init__(
        self, teachers: dict[str, Teacher], taps: dict[str, list[str]], *, accumulate: bool, **mask_options: Any
    ):
        super().__init__()
        self.teachers = teachers  # not modules: the checkpoint of a method holds only its own
        self.names = [(teacher, tap) for teacher, own in taps.items() for tap in own]
        self.accumulate = accumulate
        self.masks = nn.ModuleList([MaskNet(teachers[t].shapes[tap], **mask_options) for t, tap in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def labels(self) -> list[str]:
        """One readable name per expert."""
        return [f"{teacher} · {tap}" for teacher, tap in self.names]

    def logits(self, expert: int, batch: Batch) -> Float[Tensor, "batch classes ..."]:
        """What this specialised teacher says."""
        teacher, _ = self.names[expert]
        first = next(i for i, (name, _) in enumerate(self.names) if name == teacher)
        active = range(first, expert + 1) if self.accumulate else [expert]
        replace = {self.names[i][1]: _multiply(self.masks[i]) for i in active}
        return self.teachers[teacher](batch, replace=replace)["logits"]

    @torch.no_grad()
    def chosen(self, picks: Int[Tensor, "batch k"], batch: Batch) -> Float[Tensor, "batch k classes ..."]:
        """What each sample's picked experts say. An expert is asked about those samples only that picked it."""
        found: Tensor | None = None
        for expert in range(len(self)):
            rows, places = (picks == expert).nonzero(as_tuple=True)
            if len(rows):
                said = self.logits(expert, pick(batch, rows))
                found = said.new_zeros(*picks.shape, *said.shape[1:]) if found is None else found
                found[rows, places] = said
        assert found is not None, "every sample picks k >= 1 experts"
        return found


def _multiply(mask: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda feature: feature * mask(feature)


def divergence(ours: Tensor, theirs: Tensor, temperature: float) -> Float[Tensor, "batch"]:
    """T^2 KL(theirs || ours) per sample; on dense outputs [B, C, H, W] the mean over positions."""
    return (
        kl(ours, theirs, temperature=temperature, dim=1).flatten(1).mean(1)
        if ours.dim() > 2
        else kl(ours, theirs, temperature=temperature)
    )


class CoTraining(Method):
    """Stage 1: CE of every network plus KL_T between every ordered pair. Gradients enter both arguments."""

    temperature: float = 4.0

    card = Card(
        "mst-cotraining",
        "Stage 1 of mst-distill: teachers and student learn together.",
        teacher_mode="frozen",
        listed=False,
    )

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, *(t.model for t in self.teacher.members.values())]}

    def loss(self, batch: Batch) -> Loss:
        heard = {name: teacher(batch) for name, teacher in self.teacher.members.items()} | {
            "student": self.student(batch)
        }
        loss = Loss()
        for name, signals in heard.items():
            (part,) = self.task.loss(signals, batch).parts.values()
            loss = loss + Loss({f"task.{name}": part})
        names = list(heard)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                loss = loss + Loss.mean(f"pair.{a}.{b}", self.pair(heard[a]["logits"], heard[b]["logits"]))
        return loss

    def pair(self, a: Tensor, b: Tensor) -> Float[Tensor, "batch"]:
        """The symmetric pair term KL_T(a || b) + KL_T(b || a), without stop-gradient."""
        return divergence(a, b, self.temperature) + divergence(b, a, self.temperature)


class MaskTraining(Method):
    """Stage 2: per mask, KL_T(student || masked teacher) with the student fixed; only that mask is stepped."""

    temperature: float = 4.0

    card = Card(
        "mst-masks",
        "Stage 2 of mst-distill: masks move each teacher towards the student.",
        teacher_mode="through",
        listed=False,
    )

    def __init__(self, plan: dict[str, dict[str, str]], mask_options: dict[str, Any], **options: Any):
        super().__init__(**options)
        self._plan, self._mask_options = plan, mask_options

    def prepare(self) -> None:
        for name, own in self._plan.items():
            for tap, path in own.items():
                self.teacher.members[name].tap(tap, path)

    def setup(self) -> None:
        taps = {name: list(own) for name, own in self._plan.items()}
        self.experts = Experts(self.teacher.members, taps, accumulate=False, **self._mask_options)

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {name: [mask] for name, mask in zip(self.experts.labels(), self.experts.masks)}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = batch | {"student_logits": self.student(batch)["logits"]}
        for i, name in enumerate(self.experts.labels()):
            yield Update(name, partial(self.drift, i), batch)

    def drift(self, expert: int, batch: Batch) -> Loss:
        """KL_T(sg student || masked teacher)."""
        masked = self.experts.logits(expert, batch)
        return Loss.mean(
            f"drift.{self.experts.labels()[expert]}",
            divergence(masked, batch["student_logits"].detach(), self.temperature),
        )

    def selects_by(self) -> Literal["metric", "loss"]:
        return "loss"

    def selection(self, batch: Batch) -> Loss:
        batch = batch | {"student_logits": self.student(batch)["logits"]}
        return sum((self.drift(i, batch) for i in range(len(self.experts))), start=Loss())


class Routing(Method):
    """Stage 3: w_task CE + w_kl mean over the top k of KL_T(sg expert || student) + w_lb load balance of the gate.

    With `router=hard` the gate learns from the balance term alone (the choice is hard and its terms are unweighted).
    `weighted` multiplies the chosen terms by their renormalised probabilities; `straight-through` does so in the
    backward pass only. Both are extensions. The gate's input is the student's logits, not detached.
    """

    temperature: float = 4.0
    k: int = 1
    router: Literal["hard", "weighted", "straight-through"] = "hard"
    balance: Literal["kl", "cv"] = "kl"
    task_weight: Scalar = 1.0
    weight: Scalar = 1.0
    balance_weight: Scalar = 1.0
    accumulate: bool = False

    card = Card(
        "mst-routing",
        "Stage 3 of mst-distill: the student learns from the experts its router picks.",
        teacher_mode="frozen",
        listed=False,
    )

    def __init__(self, masks: MaskTraining, **options: Any):
        super().__init__(**options)
        self._masks = [masks]  # in a list: not a submodule, its masks become this method's own in setup

    def setup(self) -> None:
        source = self._masks[0].experts
        if not 1 <= self.k <= len(source):
            raise RecipeError(
                f"mst-distill.k is {self.k}; there are {len(source)} specialised teachers, so k is 1 to {len(source)}."
            )
        taps: dict[str, list[str]] = {}
        for teacher, tap in source.names:
            taps.setdefault(teacher, []).append(tap)
        self.experts = Experts(self.teacher.members, taps, accumulate=self.accumulate, **self._masks[0]._mask_options)
        self.experts.masks.load_state_dict(source.masks.state_dict())
        self.gate = Gate(self.student.shapes["logits"], len(self.experts))

    def selects_by(self) -> Literal["metric", "loss"]:
        return "loss"

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, self.gate]}

    def loss(self, batch: Batch) -> Loss:
        signals = self.student(batch)
        gate = self.gate(signals["logits"])
        chosen = gate.topk(self.k, dim=1).indices
        theirs = self.experts.chosen(chosen, batch)
        loss = self.weight(self.progress) * Loss.mean(
            "experts", self.routed(signals["logits"], theirs, gate.gather(1, chosen))
        )
        balance = balance_kl if self.balance == "kl" else balance_cv
        loss = loss + self.balance_weight(self.progress) * Loss.batch("balance", balance, gates=gate)
        return loss + self.task_weight(self.progress) * self.task.loss(signals, batch)

    def routed(
        self, student: Tensor, theirs: Float[Tensor, "batch k classes ..."], shares: Float[Tensor, "batch k"]
    ) -> Float[Tensor, "batch"]:
        """Per sample, the mean divergence from the k experts it picked; `shares` are their probabilities in the gate."""
        terms = torch.stack([divergence(student, theirs[:, place], self.temperature) for place in range(self.k)], dim=1)
        if self.router == "hard":
            return terms.mean(1)
        shares = shares / shares.sum(1, keepdim=True) if self.k > 1 else shares
        if self.router == "straight-through":
            shares = 1 / self.k + shares - shares.detach()
        return (shares * terms).sum(1)

    def findings(self, batches: Callable[[], Iterator[Batch]]) -> list[dict[str, Any]]:
        """The router's choices per class, and how far each expert is from the student with and without its mask."""
        names, count = self.experts.labels(), len(self.experts)
        chosen: dict[int, Tensor] = {}
        apart, samples = torch.zeros(count, 2, dtype=torch.float64), 0
        with torch.no_grad():
            for batch in batches():
                logits = self.student(batch)["logits"]
                picks = nn.functional.one_hot(self.gate(logits).topk(self.k, dim=1).indices, count).sum(1).double()
                target = batch[self.task.target]
                if target.dim() == 1 and not target.is_floating_point():
                    for label in target.unique().tolist():
                        chosen[label] = (
                            chosen.get(label, torch.zeros(count, dtype=torch.float64))
                            + picks[target == label].sum(0).cpu()
                        )
                for i, (teacher, _) in enumerate(self.experts.names):
                    plain = self.teacher.members[teacher](batch)["logits"]
                    for j, theirs in enumerate((plain, self.experts.logits(i, batch))):
                        apart[i, j] += divergence(theirs, logits, self.temperature).double().sum().cpu()
                samples += len(logits)
        labels = self.task.labels or [str(i) for i in range(max(chosen, default=-1) + 1)]
        found: list[dict[str, Any]] = []
        if chosen:
            found.append(
                {
                    "kind": "heatmap",
                    "title": "Which specialised teacher the router picks",
                    "text": "Share of each class's validation samples, by specialised teacher (teacher · masked layer).",
                    "rows": [labels[c] for c in sorted(chosen)],
                    "columns": names,
                    "values": [(chosen[c] / chosen[c].sum()).tolist() for c in sorted(chosen)],
                    "unit": "share",
                }
            )
        found.append(
            {
                "kind": "bars",
                "title": "What the masks do",
                "text": f"KL (T = {self.temperature:g}) from the student to each teacher, without and with its mask; lower is closer to the student.",
                "rows": names,
                "columns": ["unmasked", "masked"],
                "values": (apart / max(samples, 1)).tolist(),
                "unit": "nats",
            }
        )
        return found


class MSTDistill(Procedure):
    """The three stages in a row. Any number of teachers (the paper: one multimodal, one of the other modality).

    `masks` names the layers by teacher (`{fusion: [fc1, fc2]}`); by default the last `masks_per_teacher` linear or
    convolutional layers before the output layer. The weights fall as published: the transfer is halved after the
    first epoch and every 30, the balance loses a tenth every 10.
    """

    card = Card(
        "mst-distill",
        summary="Masked specialised teachers, picked per sample by a router.",
        paper="Li et al.: MST-Distill, Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation, ACM MM 2025, arXiv 2507.07015",
        teacher_mode="through",
        use_when="teachers see modalities that the student lacks, and it is not clear which of them to learn from",
        cost="one masked forward pass per specialised teacher (four by default) per sample, plus two short stages before",
    )

    temperature: Annotated[float, Field(gt=0)] = 4.0
    k: Annotated[int, Field(ge=1)] = 1
    masks: dict[str, list[str]] | None = None
    masks_per_teacher: Annotated[int, Field(ge=1)] = 2
    mask_heads: Annotated[int, Field(ge=1)] = 3
    mask_factor: Annotated[int, Field(ge=1)] = 2
    mask_width: int | None = None
    router: Literal["hard", "weighted", "straight-through"] = "hard"
    balance: Literal["kl", "cv"] = "kl"
    parity: Literal["isolated", "accumulate"] = "isolated"
    task_weight: Scalar = 1.0
    weight: Scalar = Step(start=1.0, factor=0.5, every=30, at_zero=True)
    balance_weight: Scalar = Step(start=1.0, factor=0.9, every=10, at_zero=True)
    cotraining: dict[str, Any] = {"epochs": 1}
    mask_training: dict[str, Any] = {"epochs": 1}

    def stages(self) -> Generator[Stage, StageResult, None]:
        """Co-training (left out with `cotraining: {epochs: 0}`), masks, routing."""
        if self.task is None or self.teacher is None:
            raise RecipeError("mst-distill needs a task and at least one teacher: teacher.members={name: {model: ...}}")
        if self.cotraining.get("epochs", 1) != 0:
            yield Stage(
                "cotraining", CoTraining(temperature=self.temperature), train={"select": "last"} | self.cotraining
            )
        options = {"heads": self.mask_heads, "factor": self.mask_factor, "width": self.mask_width}
        masks = MaskTraining(self.layers(), options, temperature=self.temperature)
        yield Stage("masks", masks, train=self.mask_training)
        shared = ("temperature", "k", "router", "balance", "task_weight", "weight", "balance_weight")
        yield Stage(
            "routing", Routing(masks, accumulate=self.parity == "accumulate", **{o: getattr(self, o) for o in shared})
        )

    def layers(self) -> dict[str, dict[str, str]]:
        """Per teacher, the paths of the layers to mask, by the name of their tap."""
        found: dict[str, dict[str, str]] = {}
        for name in self.masks or {}:
            if name not in self.teacher.members:
                raise RecipeError(
                    f"mst-distill.masks names the teacher '{name}'. {nearest(name, self.teacher.members)}"
                )
        for name, teacher in self.teacher.members.items():
            paths = (self.masks or {}).get(name)
            if paths is None:
                inner = [path for path, module in teacher.model.named_modules() if isinstance(module, MASKABLE)][:-1]
                if len(inner) < self.masks_per_teacher:
                    raise RecipeError(
                        f"teacher {name} has {len(inner)} linear or convolutional layers before its last one; mst-distill masks "
                        f"{self.masks_per_teacher}. Name them: method.masks={{{name}: [path, ...]}}, or method.masks_per_teacher=1"
                    )
                paths = inner[-self.masks_per_teacher :]
            known = {path: tap for tap, path in teacher.paths.items()}
            found[name] = {known.get(path, path): path for path in paths}
        return found
