"""Distillation token by token: the student's next-token distribution against the teacher's, on the data's own texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.method import Card, Transfer
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar

Divergence = Literal[
    "forward-kl",
    "reverse-kl",
    "jeffreys",
    "js",
    "continuous-js",
    "trl-js",
    "skew-kl",
    "skew-reverse-kl",
    "tvd",
    "adaptive-kl",
    "top-k-kl",
]
_OPTIONS = {
    **dict.fromkeys(("js", "continuous-js", "trl-js"), ("beta",)),
    **dict.fromkeys(("skew-kl", "skew-reverse-kl", "adaptive-kl"), ("alpha",)),
    "top-k-kl": ("k",),
}


def divergence_term(name: str, *, temperature: float, beta: float, alpha: float | None, k: int) -> Term:
    """The term of a divergence by its name: p is the teacher, q the student, T^2 in front.

    `beta` of the three JS forms; `alpha` of the skew forms (0.1 where None) and of adaptive KL (0.5 where None); `k` of
    top-k KL. See `limbeck.losses` for each formula.
    """
    skew = alpha if alpha is not None else 0.5 if name == "adaptive-kl" else 0.1
    given: dict[str, Any] = {"beta": beta, "alpha": skew, "k": k}
    options = {option: given[option] for option in _OPTIONS.get(name, ())}
    return Term("kl" if name == "forward-kl" else name, temperature=temperature, name=name, **options)


class TokenKD(Transfer):
    """weight * D(p_t, q_t) + task_weight * (-log q_t(y_t)), each a mean over the tokens of the answers.

    D is any of the divergences between next-token distributions; temperature T, and T^2 in front (which keeps the size
    of the gradient). No gradient reaches the teacher. The logits of a large vocabulary are never held as a whole.
    """

    card = Card(
        "token-kd",
        summary="The student matches the teacher's next-token distribution by a divergence of one's choice.",
        paper="Hinton, Vinyals, Dean 2015, arXiv 1503.02531, per token; the divergences: Wen et al. 2023, arXiv 2307.15190, and DistiLLM, 2024, arXiv 2402.03898",
        use_when="teacher and student share a tokenizer and the texts are given",
        cost="one forward pass of the teacher per text; memory does not grow with tokens times vocabulary",
    )

    divergence: Divergence = "forward-kl"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    k: Annotated[int, Field(ge=1)] = 64
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(
            divergence_term(self.divergence, temperature=self.temperature, beta=self.beta, alpha=self.alpha, k=self.k)
        )


class ForwardKL(TokenKD):
    """KL(p_t || q_t) per token: the student covers all that the teacher might say."""

    card = Card(
        "forward-kl",
        summary="The student's next-token distribution covers the teacher's.",
        paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, per token",
        use_when="always first for language models: teacher and student share a tokenizer, or answers are stored",
        cost="one forward pass of the teacher per text",
    )

    divergence: Literal["forward-kl"] = "forward-kl"


class ReverseKL(TokenKD):
    """KL(q_t || p_t) per token: the student avoids what the teacher would not say."""

    card = Card(
        "reverse-kl",
        summary="The student's next-token distribution keeps to the teacher's likely tokens.",
        paper="Gu et al.: MiniLLM, ICLR 2024, arXiv 2306.08543, its divergence on given texts",
        use_when="the student is much smaller and is to be right where it speaks rather than cover all",
        cost="one forward pass of the teacher per text",
    )

    divergence: Literal["reverse-kl"] = "reverse-kl"
