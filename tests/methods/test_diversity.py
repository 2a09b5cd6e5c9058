"""The base model takes the first steps: who alone at either end, the state handed over, counts, refusals, a run that ships both."""

import pytest
import torch
from points import mixture, network, situation
from trajectories import FORMULA, run

from limbeck.actors import Student, Teacher
from limbeck.diffusion.network import Sampling, sample_with
from limbeck.diffusion.solvers import sample
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods.diversity import Begun, Diversity
from limbeck.models.toy import Mixture

Z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
LABEL = {"condition": torch.tensor([0, 1, 2, 0, 1, 2])}


def combined(solver="renoise", **options):
    """A four-step student with the formula for a base."""
    where = situation(student=network())
    where.teacher = Teacher(**FORMULA)
    where.teacher.look_at(["x", "label", "id"])
    sample_with(where.student.model, steps=4, solver=solver)
    method = Diversity(**{"base_steps": 8, "base_guidance": 1.5} | options)
    settle(method, where)
    return where.student.model, where.teacher.model


@pytest.mark.parametrize("solver", ["renoise", "ddim"])
def test_switched_at_no_step_it_is_the_student_alone_to_the_bit(solver):
    model, _ = combined(solver, switch=0)
    alone = network()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("base.")})
    sample_with(alone, steps=4, solver=solver)
    assert torch.equal(model.generate(Z, LABEL), alone.generate(Z, LABEL))


def test_switched_at_the_last_step_it_is_the_base_alone():
    model, base = combined(switch=4)
    expected = base.generate(Z, LABEL, sampling=Sampling(steps=8, guidance=1.5))
    assert torch.equal(model.generate(Z, LABEL), expected)


def test_the_students_steps_begin_at_the_bases_state():
    model, base = combined("ddim", switch=1)
    states = []
    found = model.generate(Z, LABEL, watch=lambda x, said, following: states.append((x, said, following)))
    assert len(states) == 2 + 3
    theirs = []
    base.generate(Z, LABEL, sampling=Sampling(steps=8, guidance=1.5), watch=lambda *s: theirs.append(s))
    assert torch.equal(states[1][2], theirs[1][2])  # the base's own state at t = 3/4, not noised anew
    assert torch.equal(states[2][0], theirs[1][2])
    times = torch.tensor([0.75, 0.5, 0.25, 0.0])
    own = sample(lambda x, t: model.prediction(x, t, LABEL), theirs[1][2], model.noise, times, "ddim")
    torch.testing.assert_close(found, own)
    for x, said, _ in states:  # what was thought of x0 in every step
        torch.testing.assert_close(said.alpha * said.x0 + said.sigma * said.epsilon, x)


def test_states_at_the_switch_are_distributed_as_the_bases():
    """One Gaussian: at t the base's states have mean alpha m and variance alpha^2 s^2 + sigma^2."""
    where = situation(student=network(classes=None))
    where.teacher = Teacher(model="limbeck.models.toy:Mixture", args={"means": [[0.7, -0.2]], "std": 0.4})
    where.teacher.look_at(["x", "label", "id"])
    sample_with(where.student.model, steps=4, solver="renoise")
    settle(Diversity(base_steps=200, base_guidance=1.0), where)
    model, states = where.student.model, []
    z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    model.generate(z, {}, watch=lambda x, said, following: states.append(following))
    x = states[49]
    assert x.mean(0).tolist() == pytest.approx([0.25 * 0.7, 0.25 * -0.2], abs=0.02)
    assert x.var(0).tolist() == pytest.approx([0.0625 * 0.16 + 0.5625] * 2, rel=0.04)


def test_a_grid_of_other_steps_switches_at_the_nearest_time():
    model, _ = combined("ddim", switch=1, base_steps=5)
    states = []
    model.generate(Z, LABEL, watch=lambda x, said, following: states.append(said))
    level = [float(s.sigma[0]) for s in states]
    assert level == pytest.approx([1.0, 0.75, 0.5, 0.25])  # the base from 1 to 0.8, then the student from 0.75


def test_samples_do_not_depend_on_their_neighbours():
    model, _ = combined(switch=1)
    one = {"condition": LABEL["condition"][2:3]}
    torch.testing.assert_close(model.generate(Z, LABEL)[2:3], model.generate(Z[2:3], one))


def test_evaluations_are_those_of_both():
    assert Begun(steps=4, solver="renoise", switch=1, taken=5, base_guidance=7.0).evaluations == 3 + 10
    assert Begun(steps=4, solver="renoise", switch=1, taken=1, base_guidance=1.0).evaluations == 3 + 1
    assert Begun(steps=4, solver="renoise", switch=0).evaluations == 4
    assert Begun(steps=4, solver="renoise", switch=4, taken=20, base_guidance=1.0).evaluations == 20


@pytest.mark.parametrize("noise", ["flow", "vp", "ve"])
@pytest.mark.parametrize("switch", [1, 2, 3])
def test_evaluations_are_the_calls_that_are_made(noise, switch):
    """Also where a grid of times is not evenly spread (ve)."""
    where = situation(student=network(noise, "x0"))
    where.teacher = Teacher(FORMULA["model"], args=FORMULA["args"] | {"noise": noise})
    where.teacher.look_at(["x", "label", "id"])
    sample_with(where.student.model, steps=4, solver="renoise")
    settle(Diversity(base_steps=10, base_guidance=1.5, switch=switch), where)
    model, calls = where.student.model, []
    for network_ in (model, model.base):
        plain = network_.predict
        network_.predict = lambda *args, plain=plain, **given: calls.append(1) or plain(*args, **given)
    model.generate(Z, LABEL)
    assert len(calls) == model.sampling.evaluations


def test_who_was_not_finite_is_said():
    for broken, match in (
        (False, r"step 1 of 3 .time 0.75., the student"),
        (True, r"step 1 of 2 .time 1., the base model"),
    ):
        model, _ = combined("ddim", switch=1)
        module = model.base if broken else model
        module.predict = lambda x, t, **given: x / 0
        with pytest.raises(FloatingPointError, match=match):
            model.generate(Z, LABEL)


def test_nothing_is_trained_and_the_base_is_the_teacher():
    teacher = network()
    where = situation(teacher, student=network())
    sample_with(where.student.model, steps=4, solver="ddim")
    method = Diversity(base_guidance=1.0)
    settle(method, where)
    assert where.student.source.surgery[-1]["structure"]["base"] is None  # built as the student is
    for name, value in teacher.state_dict().items():
        assert torch.equal(where.student.model.base.state_dict()[name], value)
    assert not any(p.requires_grad for p in where.student.model.base.parameters())
    assert list(method.learn({}, method.progress)) == []


def test_what_does_not_fit_is_refused():
    def refused(match, where, **options):
        with pytest.raises(RecipeError, match=match):
            settle(Diversity(**options), where)

    refused("takes 20 steps", situation(), switch=21)
    refused("unlike noise", situation(mixture("vp")))
    refused("base_guidance=1", situation(Mixture([[0.0, 0.0]], 1.0), student=network(classes=None)))
    refused("given as an object", situation())


def test_a_run_trains_then_combines_and_ships_both(tmp_path):
    stages = [
        {"name": "few", "method": {"use": "dmd2", "sampling_steps": 2, "critic_steps": 2}, "train": {"steps": 2}},
        {"name": "wide", "method": {"use": "diversity", "base_steps": 4, "base_guidance": 1.5}, "train": {"steps": 1}},
    ]
    result, made = run(None, tmp_path / "run", stages=stages)
    assert result["student"]["figures"]["evaluations"] == 1 + 4
    student = Student(made.folder)
    assert isinstance(student.model.base, Mixture)
    assert student.model.sampling.evaluations == 5
