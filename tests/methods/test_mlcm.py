"""MLCM: pairs inside segments, anchors at their ends, exact students, the walk of the teacher, own samples, stages, a run without data."""

import json
from types import SimpleNamespace

import pytest
import torch
from harness import survives
from points import in_double, network, settled, situation
from trajectories import Ends, instead, play, run

from limbeck.diffusion.boundary import jump, landing
from limbeck.diffusion.network import Conditional
from limbeck.diffusion.noise import wide
from limbeck.errors import RecipeError
from limbeck.methods.mlcm import MLCM, Matching, Milestones, Rewarding, Segments
from limbeck.models.toy import Mixture

MEAN, STD = 0.7, 0.4


def flowed(noise, x, t, s):
    """Where the flow of N(MEAN, STD^2) takes x from t to s."""
    spread = [(wide(noise.alpha(z), x) ** 2 * STD**2 + wide(noise.sigma(z), x) ** 2).sqrt() for z in (t, s)]
    return wide(noise.alpha(s), x) * MEAN + spread[1] / spread[0] * (x - wide(noise.alpha(t), x) * MEAN)


class Landing(Conditional):
    """A student whose one step is the exact flow to the lower end of the segment of t."""

    def __init__(self, milestones, noise):
        super().__init__(noise, "x0")
        self.milestones = milestones

    def predict(self, x, t, **given):
        end = torch.stack([self.milestones[self.milestones < v - 1e-6].max() for v in t])
        return landing(x, flowed(self.noise, x, t, end), self.noise, t, end)


def exactly(kind=Segments, student=None, noise="flow", **options):
    """A stage with one Gaussian for a teacher, and a batch."""
    where = situation(Mixture([[MEAN, MEAN]], STD, noise=noise), student=network(noise, "x0", classes=None))
    method = kind(**options)
    batch = settled(method, where)
    made = (student or Landing)(method.milestones, method.noise)
    instead(method.generator, made)
    return method, batch


def at(method, step, batch):
    object.__setattr__(method, "progress", type(method.progress)(step=step, seed=5))
    (update,) = play(method, batch)
    return dict(update.batch)


@pytest.mark.parametrize("noise", ["flow", "vp", "ve"])
def test_pairs_lie_in_one_segment_and_every_segment_has_its_turn(noise):
    method, batch = exactly(noise=noise, segments=3, skip=0.2)
    ends = set()
    for step in range(12):
        drawn = at(method, step, batch)
        t, s, e = drawn["time"], drawn["before"], drawn["end"]
        place = next(i for i, m in enumerate(method.milestones[1:]) if m == e[0])
        ends.add(place)
        assert (e == e[0]).all()
        assert ((e <= s) & (s < t) & (t <= 1.0001 * method.milestones[place])).all()
        apart = method.noise.share(t) - torch.where(s > 0, method.noise.share(s), 0.0)
        assert ((apart < 0.2 + 1e-3) & ((s == e) | (apart > 0.2 - 1e-3))).all()
    assert ends == {0, 1, 2}


def test_a_skip_to_the_end_of_the_segment_is_taught_the_teachers_own_point():
    method, batch = exactly(segments=4, skip=0.5)  # so every step ends there
    instead(method.generator, Ends(0.1, 0.9, method.noise))
    drawn = at(method, 1, batch)
    assert torch.equal(drawn["before"], drawn["end"])
    x_s = method.walked(drawn["x"], drawn["time"], drawn["end"], 1, drawn)
    found = jump(lambda x, t: method.own(x, t, drawn), drawn["x"], drawn["time"], drawn["end"], method.noise)
    torch.testing.assert_close(method.loss(drawn).total(), ((found - x_s) ** 2).mean())


@pytest.mark.parametrize("kind", [Segments, Milestones])
def test_a_teacher_of_trained_steps_is_asked_at_these_alone(kind):
    method, batch = exactly(kind, noise="vp", segments=4, walk=7)
    asked, plain = [], method.taught
    method.taught = lambda x, t, b: asked.append(t) or plain(x, t, b)
    method.loss(at(method, 0, batch))
    times = torch.cat(asked)
    assert torch.equal(times, times.round())
    assert times.min() >= 1


@pytest.mark.parametrize("kind", [Segments, Milestones])
@pytest.mark.parametrize("noise", ["flow", "ve"])
def test_a_student_of_the_exact_flow_loses_nothing(kind, noise):
    """A teacher who knows one point: its flow is a straight line, which DDIM follows exactly; so does the student who knows it too."""
    with in_double():
        point = Mixture([[0.5, -0.25]], 0.0, noise=noise)
        where = situation(point, student=network(noise, "x0", classes=None))
        method = kind(segments=4)
        batch = settled(method, where)
        instead(method.generator, Mixture([[0.5, -0.25]], 0.0, noise=noise))
        for step in range(4):
            assert method.loss(at(method, step, batch)).total().item() == pytest.approx(0, abs=1e-20)


def test_an_exact_student_loses_the_error_of_the_teachers_step_alone():
    """Of second order: a quarter at half the step."""
    losses = []
    for skip in (0.04, 0.02):
        method, batch = exactly(segments=4, skip=skip)
        t, end = torch.full((8,), 0.65), torch.full((8,), 0.5)
        torch.manual_seed(0)
        drawn = batch | {"time": t, "before": t - skip, "end": end, "x": 0.35 * batch["x0"] + 0.65 * torch.randn(8, 2)}
        losses.append(method.loss(drawn).total().sqrt().item())
    assert losses[0] < 5e-3
    assert losses[0] / losses[1] == pytest.approx(4, rel=0.2)


def test_one_segment_is_consistency():
    method, batch = exactly(segments=1, states="data")
    instead(method.generator, Ends(0.1, 0.9, method.noise))
    drawn = at(method, 0, batch)
    t, s = drawn["time"], drawn["before"]
    x_s = method.walked(drawn["x"], t, s, 1, drawn)
    end = torch.where(wide(s, x_s) > 0, method.own(x_s, s.clamp(min=1e-3), drawn).x0, x_s)
    expected = ((method.own(drawn["x"], t, drawn).x0 - end) ** 2).mean()
    torch.testing.assert_close(method.loss(drawn).total(), expected)


def test_the_teachers_states_are_on_its_trajectories_with_more_steps_for_less_noise():
    method, batch = exactly(segments=4, walk=60)
    torch.manual_seed(0)
    drawn = at(method, 3, batch)
    torch.manual_seed(0)
    method.uniform(batch)
    z = method.fresh(batch)
    torch.testing.assert_close(drawn["x"], flowed(method.noise, z, torch.ones(8), drawn["time"]), rtol=0, atol=0.02)
    calls = []
    plain = method.taught
    method.taught = lambda x, t, b: calls.append(t) or plain(x, t, b)
    method.walk = 2
    for step in range(6):
        calls.clear()
        at(method, step, batch)
        assert len(calls) == 2 * (method.shared(4) + 1)


def test_milestones_are_joined_on_the_students_own_samples():
    method, batch = exactly(Milestones, segments=4, sampling_steps=2, walk=3)
    point = Mixture([[0.3, -0.6]], 1e-4)
    instead(method.generator, point)
    drawn = at(method, 0, batch)
    pairs = {(round(float(a), 4), round(float(b), 4)) for a, b in zip(drawn["time"], drawn["before"])}
    assert pairs <= {(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)}
    torch.manual_seed(0)
    torch.testing.assert_close(method.sampled(batch), torch.tensor([[0.3, -0.6]]).expand(8, 2), atol=1e-3, rtol=0)
    instead(method.reference, point)
    assert method.loss(drawn).total().item() == pytest.approx(0, abs=1e-6)
    method, batch = exactly(Milestones, lambda m, n: Ends(0.1, 0.9, n), segments=4, walk=2)
    x, t, s = torch.randn(8, 2), torch.full((8,), 0.5), torch.full((8,), 0.25)
    middle = method.walked(x, t, torch.full((8,), 0.375), 1, batch)
    x_s = method.walked(middle, torch.full((8,), 0.375), s, 1, batch)
    expected = ((method.own(x, t, batch).x0 - method.own(x_s, s, batch).x0) ** 2).mean()
    torch.testing.assert_close(method.loss(batch | {"x": x, "time": t, "before": s}).total(), expected)
    last = batch | {"x": x, "time": s, "before": torch.zeros(8)}  # at no noise: the teacher's point itself
    x_0 = method.walked(x, s, torch.zeros(8), 2, batch)
    torch.testing.assert_close(method.loss(last).total(), ((method.own(x, s, batch).x0 - x_0) ** 2).mean())


def test_matching_begins_at_the_students_own_samples_which_are_real_to_the_judge():
    method, batch = exactly(Matching, lambda m, n: Mixture([[0.3, -0.6]], 1e-4), segments=4, sampling_steps=2)
    updates = play(method, {name: column[:3] for name, column in batch.items()})
    assert [u.trainee for u in updates] == ["student", "critic"]
    for update in updates:
        x0, t = update.batch["x0"], update.batch["start"]
        torch.testing.assert_close(x0, torch.tensor([[0.3, -0.6]]).expand(3, 2), atol=1e-3, rtol=0)
        noise = (update.batch["input"] - wide(1 - t, x0) * x0) / wide(t, x0)
        assert noise.abs().max() < 6
        assert set(t.tolist()) <= {1.0, 0.75, 0.5, 0.25}


SCORES = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)


def liked(samples, batch):
    """A linear taste: [batch]."""
    return samples @ SCORES[0].to(samples)


def liked_and_not(samples, batch):
    """What is wanted, and what is not: [batch, 2]."""
    return samples @ SCORES.T.to(samples)


def indifferent(samples, batch):
    """No gradient."""
    return samples.sum(1).detach()


def mean_of_all(samples, batch):
    """No number per sample."""
    return samples.mean()


@pytest.mark.parametrize("taste", ["liked", "liked_and_not"])
def test_the_reward_stage_is_two_hinges_with_a_gradient_through_the_sample(taste):
    """max(0, wanted - s) + max(0, s'), at x0 = f(x_t, t): the gradient on x0 is -w where s < wanted, and + w' where s' > 0, over the batch."""
    with in_double():
        where = situation(student=network())
        method = Rewarding(reward=f"{__name__}:{taste}", wanted=0.4, guidance=1.0, segments=4, sampling_steps=2)
        batch = settled(method, where)
        (update,) = play(method, batch)
        drawn = dict(update.batch)
        assert set(drawn["time"].tolist()) <= {1.0, 0.75, 0.5, 0.25}
        x0 = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
        method.own = lambda x, t, b: SimpleNamespace(x0=x0)
        loss = method.loss(drawn)
        loss.total().backward()
        wanted, unwanted = (x0 @ SCORES.T).detach().unbind(1)
        value, gradient = (0.4 - wanted).relu(), (wanted < 0.4)[:, None] * -SCORES[0]
        if taste == "liked_and_not":
            value, gradient = value + unwanted.relu(), gradient + (unwanted > 0)[:, None] * SCORES[1]
        assert 0 < int((wanted < 0.4).sum()) < 8
        torch.testing.assert_close(loss.total(), value.mean())
        torch.testing.assert_close(x0.grad, gradient / 8)


def test_a_reward_reaches_the_student_alone_and_through_what_is_decoded():
    where = situation()
    method = Rewarding(reward=f"{__name__}:liked", guidance=1.0, segments=2)
    batch = settled(method, where)
    where.student.model.decoded = lambda x: 3 * x
    (update,) = play(method, batch)
    drawn = dict(update.batch)
    x0 = method.own(drawn["x"], drawn["time"], drawn).x0
    torch.testing.assert_close(method.loss(drawn).total(), (16 - 3 * x0 @ SCORES[0].float()).relu().mean())
    method.loss(drawn).total().backward()
    assert where.student.model.output.weight.grad.abs().max() > 0
    assert "judge_of" not in dict(method.named_modules())


@pytest.mark.parametrize(("taste", "match"), [("indifferent", "without a gradient"), ("mean_of_all", "one number per sample")])  # fmt: skip
def test_a_reward_that_teaches_nothing_is_refused_before_the_first_step(taste, match):
    with pytest.raises(RecipeError, match=match):
        settled(Rewarding(reward=f"{__name__}:{taste}", segments=2), situation())


def test_the_stages_follow_each_other_and_survive_a_kill(tmp_path):
    def build():
        return MLCM(segments=2, sampling_steps=2, guidance=1.5, walk=1, matching={"steps": 1}), situation(epochs=1)

    course = survives(build, tmp_path)
    assert [r.name for r in course.results] == ["segments", "milestones", "matching"]
    assert course.results[2].steps == 1
    names = [stage.name for stage in MLCM(milestones={"epochs": 0}).stages()]
    assert names == ["segments"]
    whole = list(MLCM(reward="a:b", wanted=3.0, distance="huber", matching={"epochs": 1}).stages())
    assert [stage.name for stage in whole] == ["segments", "milestones", "rewarding", "matching"]
    assert whole[2].method.wanted == 3.0
    assert all(stage.method.distance == "huber" for stage in whole)
    with pytest.raises(RecipeError, match="divisor"):
        list(MLCM(segments=8, sampling_steps=3).stages())


def test_conditions_are_all_the_data_it_needs():
    where = situation()
    for method in (Segments(segments=2), Milestones(segments=2), Matching(segments=2)):
        settled(method, where)
        for actor in (where.student, where.teacher):
            actor.view = type(actor.view)(condition="label", id="id")
        given = {"label": torch.tensor([0, 1, 2]), "id": torch.arange(3)}
        for update in play(method, given):
            assert torch.isfinite(update.loss(dict(update.batch)).total())
        for actor in (where.student, where.teacher):
            actor.look_at(["x", "label", "id"])


def test_a_run(tmp_path):
    method = {"use": "mlcm", "segments": 2, "sampling_steps": 2, "guidance": 1.5, "milestones": {"steps": 1}}
    method |= {"reward": f"{__name__}:liked_and_not", "wanted": 4, "rewarding": {"steps": 2}, "matching": {"steps": 1}}
    result, made = run(method, tmp_path / "run")
    assert result["student"]["figures"]["evaluations"] == 2
    terms = {
        n for line in (made.folder / "log.jsonl").read_text().splitlines() for n in json.loads(line).get("terms", ())
    }
    assert {"segments", "milestones", "reward", "unwanted", "matching", "denoising"} <= terms
