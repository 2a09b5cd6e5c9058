"""Divergences between a student and a teacher of whom only a `Sketch` is known, never expanded to all classes.

Every function takes the student's logits, a tensor [..., classes] or a `Projection` whose product is never held as a
whole, and the teacher's `Sketch` [..., k], and gives one value per token, in nats, in fp32 (fp64 for fp64), with the
conventions of `limbeck.losses.divergences` (temperature T, factor T^2, `mask`, `weight`) and, for a `Projection`, the
options of `limbeck.losses.linear` (`target` and `label_weight` for labels in the same pass, `classes`, `budget`).

**What is compared.** With S the classes that the sketch knows, both sides become distributions over k + 1 buckets: every
class of S, and all other classes together, whose mass the sketch holds. The student's probabilities are those under its
whole softmax, never normalised over S. By the data-processing inequality such a divergence is never above that of the
whole distributions, it equals it where both rests have one shape, and it is 0 where the student agrees with everything
that is known. What else can be done with the rest is said, not assumed:

- `kl(..., tail="spread")` compares with the rest spread evenly over its classes, so it is a divergence of whole
  distributions, and teaches the student an even rest.
- `kl(..., tail="drop")` and `top_k_kl` normalise the known classes to 1 and forget the rest. **This is biased**: smallest
  where the student gives the rest nothing at all.
- Of a `sampled` sketch `cross_entropy` is an unbiased estimate of -sum_v p_v log q_v, and so is its gradient, which is
  that of the forward divergence. `kl` gives the same value (the teacher's entropy is not known, so it is not taken off).
  Everything else is refused: no other divergence is linear in p.

**Temperature.** A class that is not known has an even share of the rest, and so its tempered mass; at T = 1 nothing is
assumed. (DistillKit tempers the rest as if it were one class.) Samples know the teacher at T = 1 only.

**Where the rest has classes and no mass** (all of it was below what the store can hold), the reverse divergences take the
smallest normal number for its mass, and are large and not infinite.

The teacher is a constant. Errors: `RecipeError` for shapes or vocabularies that do not go together, an option outside its
range, or a loss that a sampled sketch cannot give.

Sources: the bucket: DistillKit (`symmetric_uniform`) and TRL's server distillation; importance-weighted samples:
Anshumann et al. 2025, "Sparse logit sampling: accelerating knowledge distillation in LLMs".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses import divergences, token_divergences
from limbeck.losses.classification import cross_entropy as label_cross_entropy
from limbeck.losses.divergences import Logits
from limbeck.losses.linear.chunks import Options, Values, checked, product_dtype, shared_classes
from limbeck.losses.masking import finished, keep, widened
from limbeck.losses.sketched.buckets import TAILS, Buckets
from limbeck.losses.sketched.engine import SketchProblem, of_buckets
from limbeck.signals import Projection
from limbeck.sketches import Sketch

__all__: list[str] = []  # a recipe names the plain loss; a term takes the one here where the teacher gives a sketch

Given = Logits | Projection

Tail = Literal["bucket", "spread", "drop"]


def kl(student: Given, teacher: Sketch, *, tail: Tail = "bucket", **options: Unpack[Options]) -> Values:
    """T^2 * (sum_S p (log p - log q) + what the rest adds); `tail` says what: see above. Of samples: the cross-entropy."""
    if teacher.sampled:
        return cross_entropy(student, teacher, **options)
    return compare(divergences.kl, student, teacher, tail=tail, **options)


def cross_entropy(student: Given, teacher: Sketch, **options: Unpack[Options]) -> Values:
    """-T^2 * sum p log q: of samples an unbiased estimate of that over all classes; else over the buckets."""
    return compare(_cross_entropy, student, teacher, **options)


def reverse_kl(student: Given, teacher: Sketch, **options: Unpack[Options]) -> Values:
    """T^2 * KL(student || teacher) over the buckets."""
    return compare(divergences.reverse_kl, student, teacher, **options)


def jeffreys(student: Given, teacher: Sketch, **options: Unpack[Options]) -> Values:
    """T^2 * (KL(p || q) + KL(q || p)) over the buckets."""
    return compare(divergences.jeffreys, student, teacher, **options)


def js(student: Given, teacher: Sketch, *, beta: float = 0.5, **options: Unpack[Options]) -> Values:
    """T^2 * (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q, over the buckets; 0 < beta < 1."""
    token_divergences.inside("js with beta", beta)
    return compare(partial(divergences.js, beta=beta), student, teacher, **options)


def continuous_js(student: Given, teacher: Sketch, *, beta: float = 0.5, **options: Unpack[Options]) -> Values:
    """js / (beta (1 - beta)) over the buckets, from `kl` at beta = 0 to `reverse_kl` at 1: 0 <= beta <= 1."""
    return compare(partial(token_divergences.continuous_js, beta=beta), student, teacher, **options)


def trl_js(student: Given, teacher: Sketch, *, beta: float = 0.5, **options: Unpack[Options]) -> Values:
    """`js` over the buckets, but `kl` at beta = 0 and `reverse_kl` at 1: 0 <= beta <= 1."""
    return compare(partial(token_divergences.trl_js, beta=beta), student, teacher, **options)


def skew_kl(student: Given, teacher: Sketch, *, alpha: float = 0.1, **options: Unpack[Options]) -> Values:
    """T^2 * KL(p || alpha p + (1 - alpha) q) over the buckets, 0 < alpha < 1."""
    token_divergences.inside("skew_kl with alpha", alpha)
    return compare(partial(token_divergences.skew_kl, alpha=alpha), student, teacher, **options)


def skew_reverse_kl(student: Given, teacher: Sketch, *, alpha: float = 0.1, **options: Unpack[Options]) -> Values:
    """T^2 * KL(q || (1 - alpha) p + alpha q) over the buckets, 0 < alpha < 1."""
    token_divergences.inside("skew_reverse_kl with alpha", alpha)
    return compare(partial(token_divergences.skew_reverse_kl, alpha=alpha), student, teacher, **options)


def tvd(student: Given, teacher: Sketch, **options: Unpack[Options]) -> Values:
    """T^2 * sum |p - q| / 2 over the buckets."""
    return compare(token_divergences.tvd, student, teacher, **options)


def adaptive_kl(student: Given, teacher: Sketch, *, alpha: float = 0.5, **options: Unpack[Options]) -> Values:
    """Both directions over the buckets, weighed by where p and q differ, in the head or the tail of p; 0 < alpha < 1."""
    token_divergences.inside("adaptive_kl with alpha", alpha)
    return compare(partial(token_divergences.adaptive_kl, alpha=alpha), student, teacher, **options)


def top_k_kl(
    student: Given, teacher: Sketch, *, k: int = 64, renormalise_student: bool = False, **options: Unpack[Options]
) -> Values:
    """T^2 * KL(p' || q), p' = p restricted to the k largest of the known classes and normalised again: biased.

    Equal to `limbeck.losses.token_divergences.top_k_kl` of the whole distributions as long as the sketch knows k classes.
    """
    token_divergences.at_least_one("top_k_kl with k", k)
    if renormalise_student:
        raise RecipeError(
            "top_k_kl with renormalise_student compares nothing outside the stored classes, so it is not offered for stored "
            "logits. Leave it out, or use kl, which holds the rest as one bucket."
        )
    if k < teacher.ids.shape[-1]:
        log_probs, order = teacher.log_probs.topk(k, dim=-1)
        none = torch.full_like(teacher.log_tail, -math.inf)
        teacher = Sketch(teacher.ids.long().gather(-1, order), log_probs, none, teacher.classes, teacher.sampled)
    return compare(divergences.kl, student, teacher, tail="drop", **options)


def matching(loss: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
    """The function here that takes a sketch where `loss` takes the teacher's logits, if there is one."""
    return _MATCHING.get(loss)


def compare(
    loss: Callable[..., Tensor], student: Given, teacher: Sketch, *, tail: str = "bucket", **options: Unpack[Options]
) -> Values:
    """The values for every token of a loss that is given as a function of logits."""
    if tail not in TAILS:
        raise RecipeError(f"tail='{tail}': what is not known of the teacher is one of {', '.join(TAILS)}.")
    if teacher.sampled and loss is not _cross_entropy:
        raise RecipeError(
            "these stored logits are samples, from which sums over the teacher's distribution can be estimated and nothing "
            "else: use kl (its value is then the cross-entropy). Other divergences need cache.top_k."
        )
    if student.shape[:-1] != teacher.shape[:-1]:
        raise RecipeError(
            f"the student has logits of {list(student.shape[:-1])} tokens, the stored teacher of {list(teacher.shape[:-1])}; "
            "a token is compared with the token at its own place, so both must have read the same tokens."
        )
    checked(options, teacher.shape[:-1])
    find = _fused if isinstance(student, Projection) else _whole
    return find(loss, student, teacher, tail, options)  # type: ignore[arg-type]


def _cross_entropy(student: Float[Tensor, "tokens buckets"], teacher: Float[Tensor, "tokens buckets"]) -> Values:
    p = teacher.exp()
    return -torch.where(p == 0, 0, p * student.log_softmax(-1).where(p > 0, 0)).sum(-1)


def _whole(loss: Callable[..., Tensor], student: Logits, teacher: Sketch, tail: str, options: Options) -> Values:
    """By autograd, from the student's logits."""
    temperature, mask = options.get("temperature", 1.0), options.get("mask")
    size = shared_classes(student.shape[-1], teacher.classes, classes=options.get("classes"))
    z = keep(widened(student), mask, -1)[..., :size]
    buckets = Buckets.of(teacher, size, temperature, tail, z.dtype)
    rows = (z if temperature == 1 else z / temperature).flatten(0, -2)
    b = buckets.of_student(rows)
    values = of_buckets(loss, b, buckets)
    if tail == "spread":
        held, count = torch.where(buckets.known, b[:, :-1], 0).sum(-1), buckets.others.clamp(min=1)
        some = buckets.others > 0
        gap = b[:, -1].where(some, 0) - count.log() - (rows.sum(-1) - held) / count
        values = values + torch.where(some, buckets.log_p[:, -1].exp() * gap, 0)
    values = values.view(teacher.shape[:-1])
    values = values * temperature**2 if options.get("scale", True) else values
    target = options.get("target")
    if target is not None:
        labels = label_cross_entropy(z, target, ignore_index=options.get("ignore_index", -100))
        values = values + options.get("label_weight", 1.0) * labels
    return finished(values, mask, options.get("weight"))


@torch.compiler.disable
def _fused(loss: Callable[..., Tensor], student: Projection, teacher: Sketch, tail: str, options: Options) -> Values:
    """Chunk by chunk, the gradient written on the way."""
    size = shared_classes(len(student.weight), teacher.classes, classes=options.get("classes"))
    temperature = options.get("temperature", 1.0)
    wide = torch.float64 if product_dtype(student) == torch.float64 else torch.float32
    return SketchProblem.values(
        student,
        size,
        options,
        buffers=2 + (student.softcap is not None) + 2 * (options.get("target") is not None and temperature != 1),
        loss=loss,
        buckets=Buckets.of(teacher, size, temperature, tail, wide),
        spread=tail == "spread",
    )


_MATCHING: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
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
