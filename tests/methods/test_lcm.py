"""LCM: the published loop with the scale told, what is told when nobody says, a single scale, the boundary, a run."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, network, same, settled, situation
from trajectories import Ends, instead, run

from limbeck.actors import Student
from limbeck.diffusion.noise import wide
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.consistency import Consistency
from limbeck.methods.lcm import LCM
from limbeck.models.toy import Mixture


def f(net, x, t, given):
    """c_skip x + c_out D of the published script, t in thousandths."""
    k = wide(10 * 1000 * t, x)
    root = (k**2 + 0.25) ** 0.5
    return 0.25 / root**2 * x + k / root * net.prediction(x, t, given).x0


def test_a_training_is_the_published_loop():
    def build():
        return LCM(discretisation=5, ema=0.9, guidance=[1.5, 4.0], distance="huber", c=0.01), situation()

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R, target = where.student.model, where.teacher.model, method.target
    assert any(name.startswith("numbers.") for name, _ in target.named_parameters())
    for batch in steps(where):
        x, label, n = batch["x"], batch["label"], len(batch["x"])
        w = 1.5 + 2.5 * torch.rand(n)
        interval = (torch.rand(n) * 5).long()
        eps = torch.randn(n, 2)
        t, s = 1 - interval / 5, 1 - (interval + 1) / 5
        x_t = wide(1 - t, x) * x + wide(t, x) * eps
        c, u = (R.prediction(x_t, t, {"condition": k}).velocity for k in (label, torch.full_like(label, 3)))
        x_s = x_t + wide(s - t, x) * (c + wide(w - 1, x) * (c - u))  # the paper's scale is w - 1
        given = {"condition": label, "guidance_scale": w}
        with torch.no_grad():
            end = torch.where(wide(s, x) > 1e-9, f(target, x_s, s.clamp(min=1e-3), given), x_s)
        e = f(G, x_t, t, given) - end
        descend(G.parameters(), ((e**2 + 1e-4).sqrt() - 0.01).mean())
        for a, b in zip(target.parameters(), G.parameters()):
            a.data = 0.9 * a.data + 0.1 * b.data
    same(course.situation.student.model, G)
    same(course.methods[0].target, target)
    assert G.numbers.layers["guidance_scale"].weight.abs().max() > 0  # the scale was learnt


def test_student_target_and_what_hears_the_scale_survive_a_kill(tmp_path):
    survives(lambda: (LCM(guidance=[1.5, 4.0]), situation(optimizer="adamw", lr=1e-2, epochs=1)), tmp_path)


def test_of_no_guidance_it_is_consistency():
    where = situation()
    ours, theirs = LCM(guidance=1.0, ema=0.0), Consistency(ema=0.0)
    batch = settled(ours, where)
    settled(theirs, where)
    batch |= {"noise": torch.randn(8, 2), "time": torch.full((8,), 0.6), "before": torch.full((8,), 0.5)}
    assert not hasattr(where.student.model, "numbers")
    torch.testing.assert_close(ours.loss(batch).total(), theirs.loss(batch).total(), rtol=1e-4, atol=0)


def test_one_scale_is_learnt_and_not_told():
    where, method = situation(), LCM(guidance=3.0)
    batch = settled(method, where)
    assert (batch["guidance"] == 3.0).all()
    assert "student.guidance_scale" not in batch
    assert not hasattr(where.student.model, "numbers")


def test_a_range_is_told_and_sampling_has_its_own():
    where, method = situation(), LCM()
    batch = settled(method, where)
    assert ((batch["guidance"] >= 6) & (batch["guidance"] <= 16)).all()
    assert torch.equal(batch["student.guidance_scale"], batch["guidance"])
    assert where.student.model.numbers.defaults == {"guidance_scale": 11.0}
    where = situation()
    settled(LCM(sampling_guidance=7.5), where)
    assert where.student.model.numbers.defaults == {"guidance_scale": 7.5}


def test_an_exact_student_loses_the_teachers_error_alone():
    """Second-order local error: a quarter at half the step."""
    losses = []
    for n in (40, 80):
        where = situation(Mixture([[0.7, 0.7]], 0.4), student=network(classes=None))
        method = LCM(guidance=1.0, ema=0.0, discretisation=n)
        settled(method, where)
        instead(method.generator, Ends(0.7, 0.4, "flow"))
        g = torch.Generator().manual_seed(0)
        fine, i = method.noise.grid(n), torch.randint(0, n - 2, (2048,), generator=g)
        drawn = {
            "x0": 0.7 + 0.4 * torch.randn(2048, 2, generator=g),
            "noise": torch.randn(2048, 2, generator=g),
            "time": fine[i],
            "before": fine[i + 1],
        }
        losses.append(method.loss(drawn).total().sqrt().item())
    assert losses[0] < 0.01
    assert losses[0] / losses[1] == pytest.approx(4, rel=0.35)


def test_an_unguidable_teacher_is_refused():
    with pytest.raises(RecipeError, match="method.guidance=1"):
        settle(LCM(), situation(Mixture([[0.0, 0.0]], 1.0), student=network(classes=None)))


def test_a_run_ships_a_student_that_knows_the_scale(tmp_path):
    result, made = run({"use": "lcm", "discretisation": 4, "guidance": [1.0, 3.0]}, tmp_path / "run")
    student = Student(made.folder)
    assert student.model.numbers.defaults == {"guidance_scale": 2.0}
    assert student.model.numbers.layers["guidance_scale"].weight.abs().max() > 0
    assert result["student"]["figures"]["evaluations"] == 1
