"""GDD: the published loop, what rests under `innate`, a blind discriminator teaches nothing."""

import re
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from harness import fresh, steps, survives
from points import descend, in_double, network, same, settled, situation
from trajectories import play

from limbeck.diffusion.network import Plain
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.gdd import GDD, INNATE


def test_a_training_is_the_published_loop():
    def build():
        return GDD(r1=0.5, r1_every=2), situation(teacher=False, lr=0.02)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, H, heads = where.student.model, method.projected, method.projected.heads
    for step, batch in enumerate(steps(where)):
        given, x = {"condition": batch["label"]}, batch["x"]
        made = G.prediction(torch.randn(len(x), 2), torch.ones(len(x)), given).x0
        kept = made.detach()
        descend(G.parameters(), F.softplus(-H(made, given)).mean(), 0.02)
        descend(heads.parameters(), (F.softplus(H(kept, given)) + F.softplus(-H(x, given))).mean(), 5 * 0.02)
        if step % 2 == 0:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(H(x, given).sum(), x, create_graph=True)
            descend(heads.parameters(), 2 * 0.5 / 2 * slope.square().sum(1).mean(), 5 * 0.02)
    same(course.situation.student.model, G)
    same(course.methods[0].projected, H)


def test_what_is_innate_stays_to_the_bit(tmp_path):
    def build():
        return GDD(innate=r"^(inputs|hidden)\."), situation(teacher=False, optimizer="adamw", lr=1e-2, epochs=1)

    plan, where = fresh(build)
    before = {n: p.clone() for n, p in where.student.model.named_parameters()}
    Course(plan, where).run()
    for name, p in where.student.model.named_parameters():
        assert torch.equal(p, before[name]) is name.startswith(("inputs", "hidden")), name
    survives(build, tmp_path)


def test_a_pattern_that_freezes_nothing_or_everything_is_refused():
    for pattern in ("nowhere", "."):
        where, method = situation(teacher=False), GDD(innate=pattern)
        settle(method, where)
        with pytest.raises(RecipeError, match="method.innate"):
            method.trainees()


def test_where_the_discriminator_is_constant_nothing_is_learnt():
    where, method = situation(teacher=False), GDD()
    batch = settled(method, where)
    batch |= method.inputs(batch)
    for p in method.projected.heads[0][3].parameters():
        p.data.zero_()
    method.student_loss(batch).total().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in where.student.model.parameters())


def test_the_features_stay_those_of_the_student_as_it_began():
    plan, where = fresh(lambda: (GDD(), situation(network(), lr=0.1)))
    began = {n: p.clone() for n, p in where.student.model.named_parameters()}
    course = Course(plan, where)
    course.run()
    for name, p in course.methods[0].projected.frozen.named_parameters():
        assert torch.equal(p, began[name])


def test_the_penalty_of_linear_heads_is_their_weights_square():
    """16 gamma / 2 |w|^2 in every 16th step: lazily, and in the mean over steps as if it were in each."""
    with in_double():
        where, method = situation(teacher=False), GDD(r1=0.3, r1_every=16)
        batch = settled(method, where)
        w = torch.tensor([3.0, -4.0])
        method.judged = lambda x, batch: (x @ w).unsqueeze(1)
        assert method.penalty(batch).total().item() == pytest.approx(16 * 0.3 / 2 * 25, rel=1e-12)
        object.__setattr__(method, "progress", type(method.progress)(step=15))
        assert len(play(method, batch)) == 2
        object.__setattr__(method, "progress", type(method.progress)(step=16))
        assert [u.trainee for u in play(method, batch)] == ["student", "judge", "judge"]


class Watched(Plain):
    """Notes in which mode it is asked."""

    seen: ClassVar[list[bool]] = []

    def predict(self, x, t, **given):
        self.seen.append(self.training)
        return super().predict(x, t, **given)


class Dropping(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))

    def forward(self, x, time):
        return super().forward(x)


@pytest.mark.parametrize("innate", [False, "2.bias"])
def test_dropout_rests_although_the_student_learns(innate):
    def build():
        student = Watched(Dropping(), "flow", "velocity", shape=[2])
        return GDD(innate=innate, layers=["network.0"]), situation(teacher=False, student=student, epochs=1)

    Watched.seen.clear()
    plan, where = fresh(build)
    before = where.student.model.network[0].weight.clone()
    Course(plan, where).run()
    assert len(Watched.seen) > 6
    assert not any(Watched.seen)
    assert not torch.equal(where.student.model.network[0].weight, before)


def test_the_papers_pattern_freezes_convolutions_and_projections_of_blocks():
    """The names of EDM's U-Net, and of a U-Net of diffusers."""
    names = {
        "enc.32x32_block0.conv0.weight": True,
        "enc.32x32_block0.affine.weight": False,
        "dec.16x16_in0.proj.weight": True,
        "dec.16x16_in0.qkv.weight": False,
        "map_layer0.weight": False,
        "network.down_blocks.0.resnets.0.conv1.weight": True,
        "network.down_blocks.0.resnets.0.time_emb_proj.weight": True,
        "network.time_embedding.linear_1.weight": False,
        "network.conv_in.weight": True,
        "network.conv_norm_out.weight": False,
    }
    assert {name: bool(re.search(INNATE, name)) for name in names} == names
