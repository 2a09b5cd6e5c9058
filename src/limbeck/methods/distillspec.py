"""DistillSpec: a draft model that the target accepts more often in speculative decoding (Zhou et al. 2023, arXiv 2310.08461)."""

from __future__ import annotations

from typing import Literal

from limbeck.language.crossing import per_sample
from limbeck.language.likelihood import values_of
from limbeck.method import Batch, Card
from limbeck.methods.on_policy import OnPolicy
from limbeck.objectives import Loss, counted
from limbeck.schedules import Fraction, Scalar
from limbeck.signals import Signals


class DistillSpec(OnPolicy):
    """E over texts y of (1 / |y|) sum_t D(p(. | x, y_<t), q(. | x, y_<t)): a mean over each text, then over texts.

    The student is the draft q, the teacher the target p. D is one of the paper's four: `forward-kl`, `reverse-kl`, `js`
    (beta = 0.5), `tvd`, whose 1 - D is the probability that speculative decoding keeps a proposed token (Leviathan et al.
    2023, theorem 3.5; see the check `speculative`). Who writes the texts is decided as in `on-policy`: the draft itself
    (student_share = 1, the default), the target (student_share = 0, teacher_share = 1), the data (both 0), or a mixture. No
    gradient goes through the writing. `temperature`, of both distributions, is the one that the draft will be decoded at.

    tvd has no gradient where q stays on one side of p on all that it makes likely, so a draft far from its target learns
    slowly: begin with a draft that forward-kl has trained.
    """

    card = Card(
        "distillspec",
        summary="A draft model learns, mostly on its own texts, to propose what the target will accept.",
        paper="Zhou et al.: DistillSpec: Improving Speculative Decoding via Knowledge Distillation, ICLR 2024, arXiv 2310.08461",
        use_when="the student is to draft for its teacher in speculative decoding (evaluate: [speculative])",
        cost="one pass of the draft per written token; one pass of the target per text",
    )

    divergence: Literal["forward-kl", "reverse-kl", "js", "tvd"] = "forward-kl"  # type: ignore[assignment]
    student_share: Scalar = 1.0
    teacher_share: Fraction = 0.0

    def setup(self) -> None:
        super().setup()
        if self.divergence == "tvd":
            self.notices.append(
                "tvd moves a draft little that is still far from its target: begin with one that forward-kl has trained"
            )

    def draw(self, batch: Batch) -> Batch:
        batch = super().draw(batch)
        (term,) = self.terms.terms
        assert term.mask is not None  # what counts of a language task
        return batch | {"distillspec_weight": per_sample(counted(batch, term.mask))}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        (term,) = self.terms.terms
        share = batch["distillspec_weight"]
        options = term.options | ({"classes": self.terms.classes} if self.terms.classes is not None else {})
        values = values_of(term.function, student["logits"], teacher["logits"], share > 0, **options)
        return Loss.mean(term.name, values, share)
