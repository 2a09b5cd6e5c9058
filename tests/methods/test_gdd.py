"""GDD: the published loop, what rests under `innate`, a blind discriminator teaches nothing."""

import pytest
import torch
import torch.nn.functional as F
from harness import fresh, steps, survives
from points import descend, network, same, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.gdd import GDD


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
        descend(heads.parameters(), (F.softplus(H(kept, given)) + F.softplus(-H(x, given))).mean(), 0.02)
        if step % 2 == 0:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(H(x, given).sum(), x, create_graph=True)
            descend(heads.parameters(), 2 * 0.5 / 2 * slope.square().sum(1).mean(), 0.02)
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
