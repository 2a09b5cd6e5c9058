"""How much a student answers like its teacher, right or wrong.

Sources: Stanton et al. 2021, "Does knowledge distillation really work?", section 3 (agreement and predictive KL);
Xu et al. 2021, "Beyond preserved accuracy: evaluating loyalty and robustness of BERT compression", section 3 (loyalties).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import RecipeError


def agreement(student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> float:
    """Share of samples on which both name the same class, in [0, 1]."""
    _alike(student, teacher)
    return student.argmax(1).eq(teacher.argmax(1)).double().mean().item()


def kl_to_teacher(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], *, temperature: float = 1.0
) -> float:
    """Mean over samples of KL(p_teacher || p_student) in nats, with p = softmax(logits / temperature).

    At least 0; a class that the teacher excludes (logit -inf) costs nothing, one that only the student excludes
    costs infinitely much. No factor of temperature squared: this is a figure, not a loss.
    """
    _alike(student, teacher)
    log_p = (teacher.double() / temperature).log_softmax(1)
    log_q = (student.double() / temperature).log_softmax(1)
    cost = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    return cost.sum(1).mean().clamp(min=0).item()


def logit_correlation(student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> float:
    """Correlation of the logits after each sample's mean is taken off, <s, t> / (|s| |t|), in [-1, 1].

    Softmax does not see a sample's mean logit, so neither does this figure; it is invariant to the scale of either
    side. nan where one side is constant, or where a logit is not finite.
    """
    _alike(student, teacher)
    s, t = (logits.double() - logits.double().mean(1, keepdim=True) for logits in (student, teacher))
    return ((s * t).sum() / (s.norm() * t.norm())).item()


def label_loyalty(student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> float:
    """Accuracy of the student when the teacher's choices are the truth, in [0, 1]: the agreement under its name in that paper."""
    return agreement(student, teacher)


def probability_loyalty(student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> float:
    """Mean over samples of 1 - sqrt(JS(p_student, p_teacher)), in [0, 1]; 1 for the same probabilities.

    JS is the Jensen-Shannon divergence in bits, so that probabilities with nothing in common score exactly 0.
    """
    _alike(student, teacher)
    p, q = (logits.double().softmax(1) for logits in (student, teacher))
    middle = (p + q) / 2
    halves = [torch.special.xlogy(x, x / middle.clamp(min=torch.finfo(x.dtype).tiny)).sum(1) for x in (p, q)]
    js = (halves[0] + halves[1]) / (2 * math.log(2))
    return 1 - js.clamp(0, 1).sqrt().mean().item()


def figures(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """All of them under the names they have in ``result.json``."""
    measures = (agreement, kl_to_teacher, logit_correlation, label_loyalty, probability_loyalty)
    return {measure.__name__: measure(student, teacher) for measure in measures}


def _alike(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or not len(student):
        raise RecipeError(
            f"fidelity compares answers sample by sample and class by class: the student's have shape "
            f"{list(student.shape)}, the teacher's {list(teacher.shape)}. Match the classes by name first "
            f"(teacher.labels, student.labels)."
        )
