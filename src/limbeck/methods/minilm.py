"""MiniLM and MiniLMv2: how tokens relate to each other in one layer (Wang et al. 2020 and 2021, arXiv 2002.10957, 2012.15828)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limbeck.encoders import EncoderTransfer
from limbeck.errors import RecipeError
from limbeck.losses.token_relations import relation_kl, relation_scores
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.signals import Signals

Relation = Literal["qq", "kk", "vv", "qk", "qv", "kq", "kv", "vq", "vk"]
_PLACES = "qkv"


class MiniLM(EncoderTransfer):
    """task_weight * task + weight * sum over relations of the mean over heads and tokens of KL(R_t || R_s).

    R = softmax(A B^T / sqrt(d)) with A and B among the queries, keys and values of one layer, concatenated over the heads
    and cut anew into `relation_heads` parts: so students may have any width and any number of heads.

    - version 2, the default: queries with queries, keys with keys, values with values.
    - version 1: `relations: [qk, vv]` (attention, and values with values), with the heads that both networks have.
    - `relation_heads`: None takes the teacher's heads; more of them are finer.
    - `student_layer`, `teacher_layer`, counted from 1: None is the last. Of a large teacher
      an upper middle one may teach better.

    What is compared is what the projections give, so any implementation of attention will do; rotary positions come after
    it, so with them `qk` is not quite the attention.
    """

    card = Card(
        "minilm",
        summary="Tokens relate to each other in one layer of the student as they do in one of the teacher.",
        paper="Wang, Bao, Huang, Dong, Wei: MiniLMv2, Findings of ACL 2021, arXiv 2012.15828; MiniLM, NeurIPS 2020, arXiv 2002.10957",
        needs=("attention",),
        use_when="an encoder of any width, depth and number of heads, with the teacher's tokenizer; on texts without labels, or added to kd",
        cost="one forward pass of the teacher up to the layer compared; heads x tokens^2 relations, no parameters",
    )

    relations: Annotated[list[Relation], Field(min_length=1)] = ["qq", "kk", "vv"]
    relation_heads: Annotated[int, Field(ge=1)] | None = None
    student_layer: int | None = None
    teacher_layer: int | None = None

    def prepare(self) -> None:
        super().prepare()
        student, teacher = (
            len(inside) if given is None else given
            for inside, given in ((self.ours, self.student_layer), (self.theirs, self.teacher_layer))
        )
        self.places = self.ours.attention(student), self.theirs.attention(teacher)
        self.parts = self.relation_heads or self.theirs.heads.number
        for inside in (self.ours, self.theirs):
            heads, whose = inside.heads, inside.actor.whose
            widths = dict(zip(_PLACES, (heads.number * heads.width, *[heads.groups * heads.width] * 2)))
            for a, b in self.relations:
                if widths[a] != widths[b]:
                    raise RecipeError(
                        f"minilm: the {whose} has {heads.number} heads of queries and {heads.groups} of keys and values, so '{a}{b}' has no "
                        "meaning. Relations of one kind have: method.relations=[qq, kk, vv]"
                    )
                if widths[a] % self.parts:
                    raise RecipeError(
                        f"minilm: the {whose}'s width of {widths[a]} cannot be cut into {self.parts} relation heads. Give a number that divides it: "
                        "method.relation_heads=..."
                    )

    def teacher_reads(self) -> set[str]:
        return {*self.places[1]}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        ours, theirs = self.ours.split(student, self.places[0]), self.theirs.split(teacher, self.places[1])
        counts = self.tokens(batch, theirs[0])
        loss = Loss()
        for relation in self.relations:
            a, b = (_PLACES.index(letter) for letter in relation)
            q, p = (relation_scores(side[a], side[b], self.parts, mask=counts) for side in (ours, theirs))
            loss = loss + Loss.mean(relation, relation_kl(q, p, mask=counts))
        return loss
