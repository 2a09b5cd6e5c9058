"""Divergences between two language models from their hidden states and heads, the logits never held as a whole.

Every function takes the student's and the teacher's `Projection` (hidden [..., width] and a head: weight [classes, width],
bias) and gives one value per token, in nats, in fp32 (fp64 for fp64): what the function of the same name in
`limbeck.losses.divergences` (or `limbeck.losses.token_divergences`) gives for the two products, with the same temperature
T, factor T^2 (`scale`), `mask` and `weight`. Widths differ freely. Both heads and the divergence are computed chunk by
chunk of tokens, and the gradients in the student's hidden states, weight and bias are written in the same pass, so that
memory above the gradients themselves does not grow with the number of tokens.

- **The teacher is a constant**: no gradient goes into it. The student's gradient is exact for any use of the values; where
  they are summed or averaged (also over a mask), backward only multiplies, else it goes through the chunks once more.
  There is no second derivative.
- `mask`: tokens where it is False are skipped before any product; their values and gradients are exactly 0. If it is
  False everywhere, so are all values and gradients.
- `target`: labels [...]; adds `label_weight` times the cross-entropy -log softmax(student)_y (temperature 1) of every
  token that the mask counts and whose label is not `ignore_index`. It has no factor T^2. `weight` multiplies both.
- `classes`: only the first so many classes exist, what follows in either head is padding and takes no part in the softmax.
  None: heads of equal length are used whole; where they differ, the shorter counts if the longer is just its length
  rounded up to a multiple of 64, 128, ..., 1024 (151936 and 152064), and anything else is refused.
- `budget`: bytes for the logits of one chunk, those of both sides; None takes `chunks.BUDGET`, and for up to `SMALL` logits in all
  the plain loss on the two products, which is then the faster one.
- Scaled and soft-capped logits: the projection says how. Logits must be finite.
- Under autocast the products are taken in its dtype, as a linear layer would, and everything after them in fp32.

Errors: `RecipeError` for hidden states of different shapes, heads of different length, a mask, weight or target that does
not fit, an option outside its range. `IndexError` / `RuntimeError` of torch for a label that is no class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses import divergences, token_divergences
from limbeck.losses.classification import cross_entropy as plain_cross_entropy
from limbeck.losses.linear import forms
from limbeck.losses.linear.chunks import Options, Side, Values, checked, counting, shared_classes
from limbeck.losses.linear.engine import Form, Problem
from limbeck.losses.masking import widened
from limbeck.signals import Projection

__all__: list[str] = []  # a recipe names the plain loss; a term takes the one here where both sides are projections

STRIP = 2 * 2**20
"""Bytes of one side's logits that a form goes over at a time, on a CPU: what stays in its cache.

Measured as `chunks.BUDGET`:
    strip    0.5 MB    1 MB    2 MB    4 MB   16 MB
    kl         0.62    0.63    0.63    0.61    0.64
    js         0.67    0.65    0.68    0.67    0.73
"""

SMALL = 2**18
"""Up to so many logits the plain loss is faster, whose operations are fewer.

Time of kl over that of the plain form, one core (tokens x classes, widths):
    4 x 50 (16, 16)           2.9       4096 x 1000 (256, 512)     0.97
    16 x 100 (32, 64)         2.7       8 x 32000 (256, 512)       0.98
    256 x 100 (64, 64)        2.4       64 x 32000 (256, 512)      0.99
    256 x 1000 (256, 512)     1.04      64 x 151936 (256, 512)     0.91
"""


def kl(student: Projection, teacher: Projection, **options: Unpack[Options]) -> Values:
    """T^2 * KL(teacher || student), as `limbeck.losses.kl`."""
    return compare(divergences.kl, student, teacher, **options)


def reverse_kl(student: Projection, teacher: Projection, **options: Unpack[Options]) -> Values:
    """T^2 * KL(student || teacher), as `limbeck.losses.reverse_kl`."""
    return compare(divergences.reverse_kl, student, teacher, **options)


def jeffreys(student: Projection, teacher: Projection, **options: Unpack[Options]) -> Values:
    """T^2 * (KL(p || q) + KL(q || p)), as `limbeck.losses.jeffreys`."""
    return compare(divergences.jeffreys, student, teacher, **options)


def js(student: Projection, teacher: Projection, *, beta: float = 0.5, **options: Unpack[Options]) -> Values:
    """T^2 * (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q, as `limbeck.losses.js`: 0 < beta < 1.

    This is the normalisation of the GKD paper, which tends to 0 at both ends. DistiLLM's JS with lam = 0.9 and TAID's
    with teacher weight 0.1 are this one with beta = 0.1.
    """
    token_divergences.inside("js with beta", beta)
    return compare(partial(divergences.js, beta=beta), student, teacher, **options)


def continuous_js(student: Projection, teacher: Projection, *, beta: float = 0.5, **options: Unpack[Options]) -> Values:
    """js / (beta (1 - beta)), from `kl` at beta = 0 to `reverse_kl` at 1 without a jump: 0 <= beta <= 1."""
    return compare(
        token_divergences.between(divergences.kl, token_divergences.continuous_js, divergences.reverse_kl, beta),
        student,
        teacher,
        **options,
    )


def trl_js(student: Projection, teacher: Projection, *, beta: float = 0.5, **options: Unpack[Options]) -> Values:
    """`js`, but `kl` at beta = 0 and `reverse_kl` at 1 (a jump at both ends), as TRL's trainers have it: 0 <= beta <= 1."""
    return compare(
        token_divergences.between(divergences.kl, divergences.js, divergences.reverse_kl, beta),
        student,
        teacher,
        **options,
    )


def skew_kl(student: Projection, teacher: Projection, *, alpha: float = 0.1, **options: Unpack[Options]) -> Values:
    """T^2 * KL(p || alpha p + (1 - alpha) q), 0 < alpha < 1 (DistiLLM)."""
    token_divergences.inside("skew_kl with alpha", alpha)
    return compare(partial(token_divergences.skew_kl, alpha=alpha), student, teacher, **options)


def skew_reverse_kl(
    student: Projection, teacher: Projection, *, alpha: float = 0.1, **options: Unpack[Options]
) -> Values:
    """T^2 * KL(q || (1 - alpha) p + alpha q), 0 < alpha < 1 (DistiLLM)."""
    token_divergences.inside("skew_reverse_kl with alpha", alpha)
    return compare(partial(token_divergences.skew_reverse_kl, alpha=alpha), student, teacher, **options)


def tvd(student: Projection, teacher: Projection, **options: Unpack[Options]) -> Values:
    """T^2 * sum |p - q| / 2."""
    return compare(token_divergences.tvd, student, teacher, **options)


def adaptive_kl(student: Projection, teacher: Projection, *, alpha: float = 0.5, **options: Unpack[Options]) -> Values:
    """Both directions, weighed for every token by where p and q differ, in the head or the tail of p; 0 < alpha < 1."""
    token_divergences.inside("adaptive_kl with alpha", alpha)
    return compare(partial(token_divergences.adaptive_kl, alpha=alpha), student, teacher, **options)


def top_k_kl(
    student: Projection,
    teacher: Projection,
    *,
    k: int = 64,
    renormalise_student: bool = False,
    **options: Unpack[Options],
) -> Values:
    """T^2 * KL(p' || q), p' = p restricted to its k largest classes and normalised again (all classes, if fewer)."""
    token_divergences.at_least_one("top_k_kl with k", k)
    return compare(
        partial(token_divergences.top_k_kl, k=k, renormalise_student=renormalise_student), student, teacher, **options
    )


def cross_entropy(
    student: Projection,
    target: Int64[Tensor, "..."],
    *,
    ignore_index: int = -100,
    mask: Bool[Tensor, "..."] | None = None,
    weight: Float[Tensor, "..."] | None = None,
    classes: int | None = None,
    budget: int | None = None,
) -> Values:
    """-log softmax(student)_y alone, without a teacher, as `limbeck.losses.cross_entropy`; ignored labels give 0."""
    return compare(
        None,
        student,
        None,
        target=target,
        ignore_index=ignore_index,
        mask=mask,
        weight=weight,
        classes=classes,
        budget=budget,
    )


def fused(loss: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
    """The function here that gives for two projections what `loss` gives for their products, if there is one."""
    return _FUSED.get(loss)


@torch.compiler.disable
def compare(
    loss: Callable[..., Tensor] | None, student: Projection, teacher: Projection | None, **options: Unpack[Options]
) -> Values:
    """The values of a plain `loss` that has a form in `limbeck.losses.linear.forms` (None: of the labels alone)."""
    tokens = student.hidden.shape[:-1]
    if teacher is not None and teacher.hidden.shape[:-1] != tokens:
        raise RecipeError(
            f"the student has hidden states of {list(tokens)} tokens, the teacher of {list(teacher.hidden.shape[:-1])}; "
            "a token is compared with the token at its own place, so both must have read the same tokens."
        )
    checked(options, tokens)
    heads = [len(side.weight) for side in (student, teacher) if side is not None]
    size = shared_classes(*heads, classes=options.get("classes"))
    if options.get("budget") is None and tokens.numel() * size <= SMALL:
        return _plainly(loss, student, teacher, size, options)
    cached = student.hidden.device.type == "cpu"  # else a form takes the whole chunk, and up to three more of its size
    return Problem.values(
        student,
        size,
        options,
        buffers=2 if cached else 5,
        form=None if loss is None else _form(loss),
        teacher=None if teacher is None else Side.of(teacher, size),
        teacher_hidden=None if teacher is None else teacher.hidden.detach().flatten(0, -2),
        strip=STRIP if cached else None,
    )


def _plainly(
    loss: Callable[..., Tensor] | None, student: Projection, teacher: Projection | None, size: int, options: Options
) -> Values:
    """By the plain loss, of the whole products."""
    counted = counting(options, student.hidden.shape[:-1])
    common: dict[str, Any] = {"mask": counted, "weight": options.get("weight")}
    z = _product(student, size, counted)
    values = z.new_zeros(())
    if (target := options.get("target")) is not None:
        own = plain_cross_entropy(z, target, ignore_index=options.get("ignore_index", -100), **common)
        values = options.get("label_weight", 1.0) * own
    if loss is not None and teacher is not None:
        t = _product(teacher, size, counted).detach().to(widened(z).dtype)
        of_both = {"temperature": options.get("temperature", 1.0), "scale": options.get("scale", True)}
        values = values + loss(z, t, **of_both, **common)
    return values


def _form(loss: Callable[..., Tensor]) -> Form:
    """What finds a plain loss and its gradient from a few tokens' logits: the function of the same name in `forms`."""
    if isinstance(loss, partial):
        return partial(_form(loss.func), **loss.keywords)
    form: Form = getattr(forms, loss.__name__)
    return form


def _product(side: Projection, size: int, counted: Bool[Tensor, "..."] | None) -> Float[Tensor, "... classes"]:
    """The logits of the first `size` classes; tokens that do not count have hidden states of zeros."""
    dtype = torch.promote_types(side.hidden.dtype, side.weight.dtype)
    hidden = side.hidden if counted is None else torch.where(counted[..., None], side.hidden, 0)
    bias = None if side.bias is None else side.bias[:size].to(dtype)
    return replace(side, hidden=hidden.to(dtype), weight=side.weight[:size].to(dtype), bias=bias).materialise()


_FUSED: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    divergences.kl: kl,
    divergences.reverse_kl: reverse_kl,
    divergences.jeffreys: jeffreys,
    divergences.js: js,
    token_divergences.continuous_js: continuous_js,
    token_divergences.trl_js: trl_js,
    token_divergences.skew_kl: skew_kl,
    token_divergences.skew_reverse_kl: skew_reverse_kl,
    token_divergences.tvd: tvd,
    token_divergences.adaptive_kl: adaptive_kl,
    token_divergences.top_k_kl: top_k_kl,
}
