"""AT: attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limbeck.bridges.partial import shapes_of, to_one_kind
from limbeck.layers import LayerTransfer
from limbeck.losses.attention import attention_transfer
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class AT(LayerTransfer):
    """task_weight * task + weight * sum over layers of the distance of attention maps Q = q / |q|, q = mean_c |f_c|^p.

    No channels are compared, so nothing has to be learned between the networks; the larger of two maps is pooled to
    the smaller. `form=squared`: mean over positions of (Q_s - Q_t)^2, to which weight 1000 belongs (the authors' code).
    `form=norm`: |Q_s - Q_t|, equation 2 of the paper, where the weight is its beta / 2.

    `mask` names a batch column (bool) of the positions that count.
    """

    card = Card(
        "at",
        summary="The student looks where the teacher looks, layer by layer.",
        paper="Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928 (section 3.1)",
        needs=("stages",),
        use_when="convolutional networks of different width: no bridge, no parameters; together with kd",
        cost="one forward pass of the teacher up to the last layer compared",
    )

    weight: Scalar = 1000.0
    power: Annotated[float, Field(ge=1)] = 2.0
    form: Literal["squared", "norm"] = "squared"

    def objective(self) -> Objective:
        what = "attention transfer"
        shapes = [shapes_of(self.student, self.teacher, pair, what) for pair in self.pairs]
        return Objective(
            *(
                Term(
                    attention_transfer,
                    pair,
                    bridge=to_one_kind(*shape, what),
                    mask=self.mask,
                    name=f"attention{i}",
                    power=self.power,
                    form=self.form,
                )
                for i, (pair, shape) in enumerate(zip(self.pairs, shapes))
            )
        )
