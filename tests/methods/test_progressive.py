"""Progressive distillation: two steps become one, exactly; rounds and who teaches in them; refusals; a run."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, mixture, network, same, settled, situation
from trajectories import instead, run

from limbeck.diffusion.noise import wide
from limbeck.diffusion.solvers import ddim
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.progressive import Halving, Progressive
from limbeck.models.toy import Mixture


@pytest.mark.parametrize("first", [True, False])
def test_a_round_is_the_published_loop(first):
    def build():
        guided = {"guidance": 2.0} if first else {}
        return Halving(sampling_steps=2, first=first, weighting="v", **guided), situation(lr=0.02)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R = where.student.model, where.teacher.model
    for batch in steps(where):
        x, label, n = batch["x"], batch["label"], len(batch["x"])
        if first:
            torch.rand(n)  # guidance scales
        place = (torch.rand(n) * 2).long()
        eps = torch.randn(n, 2)
        t, m, s = (wide(1 - place / 2 - k / 4, x) for k in (0, 1, 2))
        z = (1 - t) * x + t * eps

        def velocity(x, t, label=label):
            if not first:
                return method.predecessor.prediction(x, t[:, 0], {"condition": label}).velocity
            c, u = (R.prediction(x, t[:, 0], {"condition": k}).velocity for k in (label, torch.full_like(label, 3)))
            return u + 2 * (c - u)

        with torch.no_grad():
            half = z + (m - t) * velocity(z, t)
            end = half + (s - m) * velocity(half, m)
        target = (end - s / t * z) / ((1 - s) - s / t * (1 - t))
        weight = (((1 - t) ** 2 + t**2) / t)[:, 0] ** 2
        said = G.prediction(z, t[:, 0], {"condition": label}).x0
        descend(G.parameters(), (weight * ((said - target) ** 2).mean(1)).mean(), 0.02)
    same(course.situation.student.model, G)


@pytest.mark.parametrize("noise", ["flow", "vp"])
def test_a_student_that_says_the_target_lands_where_two_steps_land(noise):
    """The target found through the loss: it is 0 for that x0 alone, and one DDIM step with it is the teacher's two."""
    where = situation(Mixture([[0.7, -0.2]], 0.4, noise=noise), student=network(noise, "x0", classes=None))
    method = Halving(sampling_steps=4, weighting="x0")
    batch = settled(method, where)
    t, s = method.grid[1].expand(8), method.grid[2].expand(8)
    batch |= {"noise": method.fresh(batch), "time": t, "to": s}
    x = x_t = method.noise.renoise(batch["x0"], t, batch["noise"])
    finer = method.noise.grid(8)
    for here, there in ((finer[2], finer[3]), (finer[3], finer[4])):
        x = ddim(x, method.taught(x, here.expand(8), batch), method.noise, here.expand(8), there.expand(8))

    class Says(Mixture):
        def predict(self, given, t, **more):
            r = float(method.noise.sigma(s[0]) / method.noise.sigma(t[0]))
            return (x - r * x_t) / float(method.noise.alpha(s[0]) - r * method.noise.alpha(t[0]))

    instead(method.generator, Says([[0.0, 0.0]], 1.0, noise=noise))
    assert method.loss(batch).total().item() == pytest.approx(0, abs=1e-10)
    one = ddim(x_t, method.generator(x_t, t), method.noise, t, s)
    torch.testing.assert_close(one, x, rtol=1e-5, atol=1e-5)


def test_who_knows_one_point_loses_nothing():
    where = situation(Mixture([[0.7, -0.2]], 1e-4), student=network(classes=None))
    method = Halving(sampling_steps=2)
    batch = settled(method, where)
    instead(method.generator, where.teacher.model)
    (update,) = _updates(method, batch)
    assert method.loss(dict(update.batch)).total().item() == pytest.approx(0, abs=1e-6)


def _updates(method, batch):
    with torch.no_grad():
        return list(method.learn(batch, method.progress))


def test_rounds_halve_and_the_student_becomes_the_teacher(tmp_path):
    def build():
        return Progressive(first_steps=4, guidance=1.5), situation(epochs=1, lr=0.02)

    course = survives(build, tmp_path)
    assert [r.name for r in course.results] == ["4-step", "2-step", "1-step"]
    first, second, third = course.methods
    assert not any(name.startswith("predecessor") for name in first.state_dict())
    assert any(name.startswith("predecessor") for name in second.state_dict())
    same(third.student.model, course.situation.student.model)
    moved = [(a - b).abs().max() for a, b in zip(second.predecessor.parameters(), third.predecessor.parameters())]
    assert max(moved) > 0
    assert first.guidance.low == 1.5
    assert second.guidance.none
    assert course.situation.student.model.sampling.steps == 1
    assert course.situation.student.model.sampling.solver == "ddim"


def test_what_cannot_be_halved_is_refused():
    with pytest.raises(RecipeError, match="first_steps"):
        list(Progressive(first_steps=6, sampling_steps=2).stages())
    assert len(list(Progressive(first_steps=6, sampling_steps=3).stages())) == 2
    with pytest.raises(RecipeError, match="vp or flow"):
        settle(Halving(sampling_steps=2), situation(mixture("ve"), student=network("ve", "edm")))


def test_a_run(tmp_path):
    result, _ = run({"use": "progressive", "first_steps": 2, "guidance": 1.5}, tmp_path / "run")
    assert result["student"]["figures"]["evaluations"] == 1
    assert result["teacher"]["metric"] < result["student"]["metric"]
