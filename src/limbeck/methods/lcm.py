"""Latent consistency distillation: consistency with guidance in the teacher's step, and its scale told to the student (Luo et al. 2023)."""

from __future__ import annotations

from limbeck.diffusion.boundary import Bounded
from limbeck.diffusion.further import give
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.method import Batch, Card, Play
from limbeck.methods.consistency import Consistency

SCALE = "guidance_scale"


class LCM(Consistency):
    """E d(f(x_t, t, w), sg f_target(x_s, s, w)), x_s the teacher's DDIM step at guidance w, w ~ U[low, high] per sample.

    f = c_skip x + c_out D is the student bounded at no noise (k = 10, d = 0.5). The student is told w, by an embedding that begins at zero, added at `place`
    (None: where it embeds its time); sampled, it is told `sampling_guidance` (None: the middle of the range). A single
    `guidance` is learnt as it is and not told, as for LCM-LoRA. Scales are those of Imagen: the paper's [5, 15] is [6, 16].

    Let the student begin as the teacher. From fresh weights it learns as slowly as consistency does, for what is known at no noise comes up
    by one interval each time the target is renewed, and slower the larger the scales: fewer intervals (`discretisation`) and a smaller range help.
    """

    card = Card(
        "lcm",
        summary="Consistency distillation with the guidance scale as an input of the student.",
        paper="Luo, Tan, Huang, Li, Zhao: Latent Consistency Models, arXiv 2310.04378; Luo et al.: LCM-LoRA, arXiv 2311.05556",
        needs=("prediction",),
        use_when="data and a teacher with guidance are at hand, and one student of few steps shall keep the scale as a knob",
        play=Play(
            sampled="data, noised to a time of a grid, a guidance scale",
            loss="as consistency, the student told the scale",
            trains="the student; a moving average is the target",
            ratio="",
            begins="the teacher; data",
        ),
        cost="the teacher's guided step (two evaluations), the target's forward pass, one forward and backward pass",
    )

    guidance: GuidanceOption = (6.0, 16.0)
    sampling_guidance: float | None = None
    place: str | None = None

    def setup(self) -> None:
        scales = self.guidance
        self.told = scales.low != scales.high
        if self.told:  # before the target is copied
            usual = self.sampling_guidance
            give(self.student, {SCALE: (scales.low + scales.high) / 2 if usual is None else usual}, self.place)
        super().setup()
        self.generator = Bounded(self.student)
        if self.ema:
            self.follower = Bounded(self.follower.actor)

    def begin(self, batch: Batch) -> Batch:
        batch = super().begin(batch)
        return batch | {f"student.{SCALE}": batch["guidance"]} if self.told else batch
