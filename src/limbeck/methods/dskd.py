"""Dual-space distillation: each model's hidden states speak through the other's head (Zhang et al. 2024, arXiv 2406.17328)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.actors import Actor
from limbeck.errors import RecipeError
from limbeck.language.crossing import Crossing
from limbeck.language.likelihood import next_tokens
from limbeck.losses import linear
from limbeck.losses.linear.choosing import most_probable
from limbeck.losses.masking import widened
from limbeck.method import Batch, Card
from limbeck.methods.token_kd import Divergence, divergence_term
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Projection, Signals

States = Float[Tensor, "batch tokens width"]


class DSKD(Crossing):
    """task_weight * CE + weight * (CE(z_ts, y) + D(softmax(sg z_ts), q) + KL(p || softmax(z_st))), means over answer tokens.

    h_s and h_t are the last hidden states, W_s and T the heads (constants here): z_ts = W_s P_ts(h_t) is what the teacher's
    states say in the student's space, z_st = T P_st(h_s) the other way round; both maps are linear and learn. P_ts learns
    by its cross-entropy alone. D is any divergence of `token-kd` at `temperature`, without T^2.

    With tokens of its own (cross-model attention), each student position looks at all answer positions of the teacher:
    A = P_q[e_s(in); e_s(next)] [e_t(in); e_t(next)]^T / std / sqrt(2 width_t) over constant embeddings, h_ts =
    softmax(A) P_ts(h_t / std + e_t(next) / std), and h_st = softmax(A^T) P_st(h_s) at the teacher's positions. D then
    counts where z_ts is right about the next token. The standard deviations are those of a sample's answer (the code's
    are of the whole batch with its padding, which would depend on how a batch is cut).
    """

    card = Card(
        "dskd",
        summary="Teacher and student compare in both spaces: each one's hidden states speak through the other's head.",
        paper="Zhang, Zhang, Sun, Chen, Xu: Dual-Space Knowledge Distillation for Large Language Models, EMNLP 2024, arXiv 2406.17328",
        needs=("logits",),
        use_when="both models are at hand with their heads; labels count too; other tokenizers are met by attention between the models",
        cost="one forward pass of the teacher; two products with a vocabulary more per token, two or three linear maps that are thrown away",
        across_tokenizers=True,
    )

    weight: Scalar = 0.5
    task_weight: Scalar = 0.5
    divergence: Divergence = "forward-kl"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    k: Annotated[int, Field(ge=1)] = 64

    def setup(self) -> None:
        super().setup()
        term = divergence_term(
            self.divergence, temperature=self.temperature, beta=self.beta, alpha=self.alpha, k=self.k
        )
        fused = linear.fused(term.function)
        assert fused is not None
        self._compare, self._how = fused, {n: o for n, o in term.options.items() if n != "temperature"}
        device = next((p.device for p in self.student.model.parameters()), torch.device("cpu"))
        few = self.data.splits["train"].__getitems__([0])
        few = {name: value.to(device) for name, value in few.items() if isinstance(value, Tensor)}
        with torch.no_grad():
            d, D = (factors(actor, actor(few)).hidden.shape[-1] for actor in (self.student, self.teacher))
        self.to_student, self.to_teacher = nn.Linear(D, d), nn.Linear(d, D)
        self.query = None
        if "teacher_input_ids" in few:
            e, E = (embeddings(actor).shape[1] for actor in (self.student, self.teacher))
            if E != D:
                raise RecipeError(
                    f"dskd adds the teacher's embeddings to its hidden states: they have {E} and {D} numbers. Needed is a "
                    "teacher in which both have the same."
                )
            self.query = nn.Linear(2 * e, 2 * E)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        z, w = factors(self.student, student), factors(self.teacher, teacher)
        own, here = self.theirs(batch), batch["answer"]
        there, target = own["answer"], torch.where(here, next_tokens(batch), 0)
        if self.query is None:
            h_ts, h_st = mapped(self.to_student, w.hidden), mapped(self.to_teacher, z.hidden)
        else:
            h_ts, h_st = self.attended(z.hidden, w.hidden, batch, own)
        z_ts, z_st = through(h_ts, z), through(h_st, w)
        reached = here if self.query is None else here & (most_probable(z_ts, here) == target)
        options: dict[str, Any] = {"temperature": self.temperature, "scale": False}
        if self.query is None:
            size = self.student.tokenizer.size if self.student.tokenizer is not None else None
            options["classes"] = linear.shared_classes(z.shape[-1], w.shape[-1], classes=size)
        return (
            Loss.mean("dskd.projector", linear.cross_entropy(z_ts, target, mask=here), here)
            + Loss.mean("dskd.student", self._compare(z, z_ts, mask=reached, **self._how, **options), here)
            + Loss.mean("dskd.teacher", linear.kl(z_st, w, mask=there, **options), there)
        )

    def attended(self, ours: States, theirs: States, batch: Batch, own: Batch) -> tuple[States, States]:
        """The teacher's states at the student's positions, in its space, and the other way round."""
        assert self.query is not None
        here, there = batch["answer"], own["answer"]
        mine, other = (embeddings(actor) for actor in (self.student, self.teacher))
        asked = torch.cat([F.embedding(x, mine) for x in (batch["input_ids"], next_tokens(batch))], -1)
        k_in, k_next = (F.embedding(x, other) for x in (own["input_ids"], next_tokens(own)))
        keys = torch.cat([k_in, k_next], -1)
        asked = mapped(self.query, asked)
        scores = asked @ (keys / spread(keys, there)).to(asked.dtype).mT / math.sqrt(keys.shape[-1])
        values = mapped(self.to_student, theirs / spread(theirs, there) + k_next / spread(k_next, there))
        return attend(scores, values, there), attend(scores.mT, mapped(self.to_teacher, ours), here)


def mapped(layer: nn.Linear, x: States) -> States:
    """The layer on states of any precision, in its own."""
    return layer(x.to(layer.weight.dtype))


def attend(scores: Float[Tensor, "batch queries keys"], values: States, mask: Bool[Tensor, "batch keys"]) -> States:
    """softmax(scores) @ values over the keys that count; 0 where none does."""
    scores = widened(scores)
    share = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).softmax(-1) * mask[:, None]
    return share.to(values.dtype) @ torch.where(mask[..., None], values, 0)


def spread(x: States, mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch 1 1"]:
    """The standard deviation of all numbers of a sample's counted tokens, a constant; 1 where there is none."""
    x, counts = widened(x.detach()), mask[..., None]
    number = (mask.sum(1) * x.shape[-1]).clamp(min=1)[:, None, None]
    mean = torch.where(counts, x, 0).sum((1, 2), keepdim=True) / number
    variance = torch.where(counts, (x - mean).square(), 0).sum((1, 2), keepdim=True) / number
    return torch.where(variance > 0, variance, 1).sqrt()


def through(hidden: States, head: Projection) -> Projection:
    """Hidden states through a head, which is a constant."""
    bias = None if head.bias is None else head.bias.detach()
    return Projection(hidden.to(head.weight.dtype), head.weight.detach(), bias, head.scale, head.softcap)


def factors(actor: Actor, signals: Signals) -> Projection:
    """The logits as hidden states and a head.

    Raises:
        RecipeError: the model gives them multiplied out, or a part of them.
    """
    found: Any = signals["logits"]
    if not isinstance(found, Projection):
        raise RecipeError(
            f"dskd reads hidden states and the head, and the {actor.whose} gives logits as a {type(found).__name__}. Needed is a "
            "language model of transformers, or a module that returns a limbeck.Projection."
        )
    return found


def embeddings(actor: Actor) -> Float[Tensor, "tokens width"]:
    """The input embeddings of a model, a constant.

    Raises:
        RecipeError: the model does not say which they are.
    """
    find = getattr(actor.model, "get_input_embeddings", None)
    if find is None:
        raise RecipeError(
            f"dskd reads the embeddings of tokens, and the {actor.whose} ({type(actor.model).__name__}) has no get_input_embeddings()."
        )
    weight: Tensor = find().weight
    return weight.detach()
