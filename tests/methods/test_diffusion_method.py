"""What methods of generation share: drawn times and scales, conditions apart, validation without chance, refusals, and what is said of a teacher."""

import pytest
import torch
from points import mixture, network, settled, situation
from trajectories import instead

from limbeck.actors import Student, Teacher
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.network import Plain
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods.denoise import Denoising
from limbeck.teachers import Mixture as Several


class Bare(DiffusionMethod):
    """Nothing but what is shared."""


def test_a_batch_begins_with_data_conditions_and_scales():
    where, method = situation(), Bare(guidance=[1.5, 4.0])
    batch = settled(method, where)
    assert batch["x0"] is batch["x"]
    for whose in ("student", "teacher"):
        assert torch.equal(method.given(batch, whose)["condition"], batch["label"])
    assert 1.5 <= batch["guidance"].min() < batch["guidance"].max() <= 4.0
    assert "guidance" not in settled(Bare(), where)


def test_times_are_the_methods_own_or_given():
    where, method = situation(), Bare(times=[0.2, 0.4])
    batch = settled(method, where)
    t = torch.cat([method.drawn(batch) for _ in range(50)])
    assert 0.2 <= t.min() < 0.25 < 0.35 < t.max() <= 0.4
    from limbeck.diffusion.times import Uniform

    assert (method.drawn(batch, Uniform(low=0.9, high=1.0)) >= 0.9).all()


def test_validation_is_the_same_whenever_it_is_made_and_in_any_batches():
    where, method = situation(), Bare()
    settled(method, where)
    rows = where.data.splits["validation"].__getitems__(list(range(6)))
    state = torch.get_rng_state()
    one = method.selection(rows).parts["denoising"]
    assert torch.equal(torch.get_rng_state(), state)
    halves = [method.selection({k: v[i : i + 3] for k, v in rows.items()}).parts["denoising"] for i in (0, 3)]
    torch.testing.assert_close(sum(h.sum for h in halves), one.sum)


def test_the_teacher_is_measured_as_it_taught():
    where = situation()
    settled(Bare(guidance=[1.0, 4.0]), where)
    assert where.teacher.model.sampling.guidance == 2.5
    assert where.student.model.sampling.guidance == 1


def test_a_student_begins_below_the_top_where_it_is_told_to():
    where, method = situation(), Bare(start=0.4, sampling_steps=2)
    batch = settled(method, where)
    assert method.grid.tolist() == pytest.approx([0.4, 0.2, 0.0])
    found = method.inputs(batch, place=0)
    assert (found["start"] == method.grid[0]).all()
    assert where.student.model.sampling.start == 0.4


class Says(torch.nn.Module):
    """A network that was trained to predict something else than is said of it."""

    def __init__(self, gain):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x, time):
        return self.gain * x


@pytest.mark.parametrize(("head", "gain", "spoken"), [("epsilon", -1.0, True), ("epsilon", 1.0, False), ("v", 1.0, True), ("v", -0.1, False)])  # fmt: skip
def test_a_teacher_whose_answers_look_like_another_heads_is_spoken_of(head, gain, spoken):
    teacher = Plain(Says(gain), "vp", head, shape=[2])
    where = situation(teacher, student=network("vp", classes=None))
    method = Bare()
    settle(method, where)
    assert any("prediction_type" in sentence for sentence in method.notices) is spoken


def test_no_shape_is_asked_for_in_a_sentence():
    where, method = situation(), Bare()
    settle(method, where)
    method.generator.model.shape = None
    with pytest.raises(RecipeError, match="give its network a shape"):
        method.fresh({"label": torch.zeros(3)})


def test_a_network_of_another_kind_is_refused():
    where = situation()
    where.student = Student(torch.nn.Linear(2, 2), view="x")
    with pytest.raises(RecipeError, match="the student is a Linear"):
        settle(Bare(), where)
    where = situation()
    where.teacher = Teacher(torch.nn.Linear(2, 2), view="x")
    with pytest.raises(RecipeError, match="the teacher is a Linear"):
        settle(Bare(), where)


def test_a_teacher_of_another_schedule_teaches_in_the_students_times():
    batches = []
    for noise in ("flow", "vp"):
        where, method = situation(mixture(noise)), Bare(start=0.99)
        batch = settled(method, where)
        x_t = torch.linspace(-1, 1, 16).reshape(8, 2)
        batches.append(method.taught(x_t, torch.linspace(0.1, 0.9, 8), batch).x0)
    torch.testing.assert_close(*batches, rtol=1e-2, atol=1e-2)
    with pytest.raises(RecipeError, match="never seen"):
        settle(Bare(), situation(mixture("vp")))


def test_every_generators_card_says_how_it_is_played():
    """A row of the table in docs/methods.md for each listed method whose student generates."""
    from limbeck.methods import all_methods

    inner = {cls.__module__ for cls in all_methods().values() if issubclass(cls, DiffusionMethod)}
    listed = {name: cls.card for name, cls in all_methods().items() if cls.card.listed and cls.__module__ in inner}
    assert len(listed) >= 18
    for name, card in listed.items():
        assert card.play is not None, name
        assert all((card.play.sampled, card.play.loss, card.play.trains, card.play.begins)), name


class Bursting(torch.nn.Module):
    """Says nothing that is a number below a time."""

    def __init__(self, below=0.6):
        super().__init__()
        self.below, self.gain = below, torch.nn.Parameter(torch.ones(1))

    def forward(self, x, time):
        return self.gain * x / (time[:, None] > self.below)


def bursting(below=0.6):
    made = Plain(Bursting(below), "flow", "velocity", shape=[2])
    made.whose = "student"
    return made


@pytest.mark.parametrize("solver", ["renoise", "ddim", "heun"])
def test_a_rollout_that_is_not_finite_says_which_training_step_which_step_of_the_sampler_and_whose(solver):
    where, method = (
        situation(mixture(classes=False), student=network(classes=None)),
        Bare(sampling_steps=4, solver=solver),
    )
    batch = settled(method, where)
    instead(method.generator, bursting())
    object.__setattr__(method, "progress", type(method.progress)(step=7))
    step = "step 3 of 3 .time 0.5." if solver != "heun" else "step 2 of 3 .time 0.75."  # which asks one step ahead
    with pytest.raises(
        FloatingPointError,
        match=f"training step 7, before the updates of student: sampling {step}, the student .Plain.",
    ):
        method.inputs(batch, place=3)
    assert torch.isfinite(method.inputs(batch, place=1)["input"]).all()


def test_samples_that_are_not_finite_are_said_with_their_rows():
    where, method = situation(mixture(classes=False), student=network(classes=None)), Bare(sampling_steps=4)
    batch = settled(method, where)
    instead(method.generator, bursting())
    batch |= {"input": torch.ones(8, 2), "start": torch.tensor([1.0, 0.5, 0.75, 0.25, 1.0, 1.0, 0.75, 0.5])}
    expected = "training step 0, .* the student .Plain. from time 0.25, 0.5 are not finite in 3 of 8 rows; its input was finite"
    with pytest.raises(FloatingPointError, match=expected):
        method.made(batch)
    fine = batch | {"start": torch.ones(8)}
    assert torch.equal(method.made(fine), method.generated(fine))


@pytest.mark.parametrize("solver", ["renoise", "ddim", "heun"])
def test_a_rollout_is_that_of_the_sampler(solver):
    """What `inputs` comes to at a place is the state of `generate` there, with the same draws."""
    where, method = situation(), Bare(sampling_steps=4, solver=solver)
    batch, draws, states = settled(method, where), [], []
    plain = method.fresh
    method.fresh = lambda b: draws.append(plain(b)) or draws[-1]
    found = method.inputs(batch, place=2)["input"]
    later = iter(draws[1:] + [torch.zeros(8, 2)] * 4)
    how = {"fresh": lambda step: next(later), "watch": lambda x, said, to: states.append(to)}
    where.student.model.generate(draws[0], {"condition": batch["label"]}, **how)
    torch.testing.assert_close(found, states[1])


def test_a_teacher_that_says_no_numbers_is_found_before_the_first_step():
    teacher = network()
    with torch.no_grad():
        teacher.output.weight.fill_(torch.inf)
    with pytest.raises(
        FloatingPointError, match="step 1 of 20 .time 1., the teacher .PointDenoiser.: its velocity is not finite"
    ):
        settle(Bare(), situation(teacher))


def test_guidance_of_no_teacher_is_refused():
    with pytest.raises(RecipeError, match="there is no teacher"):
        settle(Denoising(guidance=2.0), situation(teacher=False))


def test_several_teachers_are_refused_where_one_is_asked():
    where = situation()
    where.teacher = Several({"ink": Teacher(mixture()), "oil": Teacher(mixture())})
    where.teacher.look_at(["x", "label", "id"])
    with pytest.raises(RecipeError, match="learns from one teacher, and there are 2: ink, oil.*method=dmm"):
        settle(Bare(), where)
    where.teacher = Several({"ink": Teacher(mixture())})
    where.teacher.look_at(["x", "label", "id"])
    method = Bare()
    settle(method, where)
    assert list(method.references) == ["ink"]
    assert method.reference.model is where.teacher.members["ink"].model
