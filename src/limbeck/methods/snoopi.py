"""SNOOPI: variational score distillation with a guidance scale drawn anew, and negative prompts for one step (Nguyen et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import PerSample, Values
from limbeck.diffusion.negative import PREFIX, STRENGTH
from limbeck.diffusion.predictors import Prediction
from limbeck.errors import RecipeError
from limbeck.method import Batch, Card, Play
from limbeck.methods.vsd import VSD
from limbeck.sources import operate


class SNOOPI(VSD):
    """As `vsd`, with w ~ U[low, high] per sample, the same for the teacher and the critic.

    With `negative` (a prompt or label, or several, of which one is drawn per sample) the teacher's unguided answer is to that instead of to none, the
    critic's stays to none, and the student subtracts a times the attention to it in its cross-attention `layers`, a drawn from
    `strength`; without the student's part the teacher's does harm (their ablation). The student then also takes `strength` and
    `negative_condition` when it is sampled (`student.generate(z, {...})`; published 0.1 to 0.5); without them it is sampled plainly.
    """

    card = Card(
        "snoopi",
        summary="SwiftBrush with random guidance scales, and a one-step student that can be told what is not wanted.",
        paper="Nguyen, Nguyen, Nguyen, Tran: SNOOPI, Supercharged One-step Diffusion Distillation with Proper Guidance, arXiv 2412.02687",
        needs=("prediction",),
        use_when="as vsd, where one fixed scale does not settle, or where samples shall obey negative prompts",
        play=Play(
            sampled="noise",
            loss="as vsd, one drawn scale for both scores; negative conditions",
            trains="the student, the critic F",
            ratio="1 : 1, the student first",
            begins="the teacher; conditions, negative ones",
        ),
        cost="as vsd; with negative also a second attention in the student's cross-attention layers",
    )

    guidance: GuidanceOption = (0.5, 4.0)
    negative: str | int | list[str] | list[int] | None = None
    strength: GuidanceOption = (0.0, 1.0)
    layers: list[str] = ["attn2"]

    def setup(self) -> None:
        self.unwanted = self.negative if isinstance(self.negative, list) else [self.negative]
        super().setup()  # a critic that is a copy of the student is copied before the operation
        if self.negative is None:
            return
        texts = [isinstance(n, str) for n in self.unwanted]
        if self.guidance.none or all(texts) != (self.generator.model.conditions == "text") or not texts:
            raise RecipeError(
                f"method.negative={self.negative!r} with guidance={self.guidance.spec()}: needed is guidance (its unguided answer is to the negative condition), "
                "and prompts for a network of texts, or labels for one of classes."
            )
        operate(self.student.source, "limbeck.diffusion.negative:subtract", {"layers": self.layers})
        self.student.listen_again()

    def begin(self, batch: Batch) -> Batch:
        batch = super().begin(batch)
        if self.negative is None:
            return batch
        drawn = [self.unwanted[i] for i in (self.uniform(batch) * len(self.unwanted)).long().tolist()]
        told = drawn if isinstance(drawn[0], str) else torch.tensor(drawn, device=self._device(batch))
        assert self.reference is not None
        ours, theirs = self.generator.model.understood(told), self.reference.model.understood(told)
        batch |= {f"student.{PREFIX}{name}": value for name, value in ours.items()}
        batch |= {f"unwanted.{name}": value for name, value in theirs.items()}
        return batch | {f"student.{STRENGTH}": self.strength.draw(self.uniform(batch))}

    def given(self, batch: Batch, whose: str) -> dict[str, Tensor]:
        found = super().given(batch, whose)
        if whose != "critic":
            return found
        return {k: v for k, v in found.items() if k != STRENGTH and not k.startswith(PREFIX)}

    def taught(self, x_t: Values, t: PerSample, batch: Batch, drop: Tensor | None = None) -> Prediction:
        if self.negative is None:
            return super().taught(x_t, t, batch, drop)
        assert self.reference is not None
        scale, unwanted = batch["guidance"], self.given(batch, "unwanted")
        return self.reference(x_t, t, self.given(batch, "teacher"), guidance=scale, drop=drop, instead=unwanted)
