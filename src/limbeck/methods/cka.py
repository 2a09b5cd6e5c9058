"""CKA as a loss: centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.layers import LayerTransfer
from limbeck.losses.alignment import cka
from limbeck.method import Card
from limbeck.objectives import Objective, Term


class CKA(LayerTransfer):
    """task_weight * task + weight * sum over layers of 1 - CKA(f_s, f_t) over the samples of the batch.

    The student places samples relative to each other as the teacher does, up to rotation, shift and scale; widths and
    positions need not agree, and nothing is learned between the networks. A relation between samples: the whole batch
    of the step is compared at once, over pieces and processes, and small batches say little. `unbiased` does not
    reward having more features than samples. `mask` names a batch column (bool) of the samples that count.
    """

    card = Card(
        "cka",
        summary="Samples lie to each other as in the teacher's representation.",
        paper="Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019, arXiv 1905.00414 "
        "(eq. 2 to 4, there a measure); unbiased: Nguyen, Raghu, Kornblith 2021, arXiv 2010.15327",
        needs=("embedding",),
        use_when="networks of different kinds and widths; batches of 64 and more",
        cost="one forward pass of the teacher; two kernels of batch x batch",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "embedding"

    kernel: Literal["linear", "rbf"] = "linear"
    bandwidth: Annotated[float, Field(gt=0)] = 1.0
    unbiased: bool = False

    def objective(self) -> Objective:
        return Objective(
            *(
                Term(
                    cka,
                    pair,
                    bridge="none",
                    scope="batch",
                    mask=self.mask,
                    name=f"alignment{i}",
                    kernel=self.kernel,
                    unbiased=self.unbiased,
                    bandwidth=self.bandwidth,
                )
                for i, pair in enumerate(self.pairs)
            )
        )
