"""C2KD: cross-modal distillation on the fly, through proxies and filtered by rank (CVPR 2024).

A teacher of another modality is often sure of what the student cannot see. So teacher and student learn together, each
with a proxy head on its embedding; only the proxies meet, only over the classes that are not the label, and only on
samples that both rank alike.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.layers import LayerTransfer
from limbeck.losses import kl
from limbeck.losses.ranking import kendall_tau
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar, to_schedule


class C2KD(LayerTransfer):
    """task(s) + task(t) + weight * m (KL(sg r_t || r_s) + KL(sg r_s || r_t)) + proxy_weight * sum over both networks of
    KL(sg net || proxy) + KL(sg proxy || net), T = 1, means over samples (all of them, also where m = 0).

    r is the softmax of a proxy's logits with the label's logit set to 0 (it stays in the softmax, as published); m is 1
    where Kendall's tau-b of the two proxies' logits is above `least_agreement`. On dense outputs all of it is per
    position. The teacher learns too, with the student's optimiser; both embeddings are found, or named with `layers`.
    """

    card = Card(
        "c2kd",
        summary="Teacher and student learn together through proxy heads, on samples that both rank alike.",
        paper="Huo et al.: C2KD, Bridging the Modality Gap for Cross-Modal Knowledge Distillation, CVPR 2024 (as re-implemented in MST-Distill's benchmark, arXiv 2507.07015)",
        needs=("logits", "embedding"),
        use_when="the teacher sees another modality, and its soft labels mislead the student",
        cost="the teacher is trained too: its forward and backward pass, and two linear heads",
    )

    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "embedding"

    proxy_weight: Scalar = 1.0
    least_agreement: float = 0.0

    def setup(self) -> None:
        super().setup()
        ((ours, theirs),) = self.pairs
        self.proxies = nn.ModuleDict(
            {
                "student": head(self.student.shapes[ours], self.student.shapes["logits"]),
                "teacher": head(self.teacher.shapes[theirs], self.teacher.shapes["logits"]),
            }
        )

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, self.teacher.model, self.proxies]}

    def loss(self, batch: Batch) -> Loss:
        heard = {"student": self.student(batch), "teacher": self.teacher(batch)}
        names = dict(zip(heard, self.pairs[0]))
        proxies = {who: self.proxies[who](signals[names[who]]) for who, signals in heard.items()}
        (own,) = self.task.loss(heard["student"], batch).parts.values()
        (other,) = self.task.loss(heard["teacher"], batch).parts.values()
        loss = to_schedule(self.task_weight)(self.progress) * Loss({"task": own, "task.teacher": other})
        crossed = self.crossed(proxies["student"], proxies["teacher"], batch[self.task.target])
        loss = loss + to_schedule(self.weight)(self.progress) * Loss.mean("crossed", crossed)
        for who, signals in heard.items():
            tied = both_ways(proxies[who], signals["logits"])
            loss = loss + to_schedule(self.proxy_weight)(self.progress) * Loss.mean(f"proxy.{who}", tied)
        return loss

    def crossed(
        self, student: Float[Tensor, "batch classes ..."], teacher: Float[Tensor, "batch classes ..."], target: Tensor
    ) -> Float[Tensor, "batch ..."]:
        """The proxies' divergence over the other classes, 0 where they rank the classes differently."""
        alike = kendall_tau(student, teacher, dim=1) > self.least_agreement
        labels = target.clamp(min=0).unsqueeze(1)
        without = [z.scatter(1, labels, 0.0) for z in (student, teacher)]
        return both_ways(*without) * (alike & (target >= 0))


def both_ways(
    a: Float[Tensor, "batch classes ..."], b: Float[Tensor, "batch classes ..."]
) -> Float[Tensor, "batch ..."]:
    """KL(sg b || a) + KL(sg a || b): each learns from the other as it stands."""
    return kl(a, b.detach(), dim=1) + kl(b, a.detach(), dim=1)


def head(feature: tuple[int, ...], logits: tuple[int, ...]) -> nn.Module:
    """From an embedding to class logits: linear for a vector, 1x1 for a map."""
    return nn.Linear(feature[-1], logits[-1]) if len(feature) == 1 else nn.Conv2d(feature[0], logits[0], 1)


__all__ = ["C2KD", "both_ways", "head"]
