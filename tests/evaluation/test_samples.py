"""What is kept of generators: the very samples that are measured, ways that begin in the noise and end in the sample, and not too much."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from limbeck import Student, Task, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.diffusion.network import Sampling
from limbeck.diffusion.noise import VE, VP, Flow
from limbeck.evaluation import samples
from limbeck.evaluation.samples import Course, Generated, generate, kind_of, levels, record, shrunk, span_of
from limbeck.models.toy import PictureDenoiser, PointDenoiser
from limbeck.randomness import fold, normal
from limbeck.teachers.mixture import Mixture as Teachers

CPU = torch.device("cpu")


def student(noise="flow", kind=Student, seed=0, **sampling):
    torch.manual_seed(seed)
    actor = kind(PointDenoiser(width=8, noise=noise, head="velocity", classes=3))
    actor.look_at(["x", "label", "id"])
    actor.model.sampling = Sampling(**sampling)
    return actor


def painter(size=8, channels=1, **options):
    torch.manual_seed(0)
    actor = Student(PictureDenoiser(channels, size, width=8, **options))
    actor.look_at(["x", "label", "id"])
    actor.model.sampling = Sampling(steps=2)
    return actor


def data(shape=(2,), rows=30, low=-1.0, **columns):
    x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0)) * (1 - low) + low
    split = TensorSplit({"x": x, "label": torch.arange(rows) % 3} | columns, first_id=100)
    return Data({"test": split}, {"x": ""}, {"label": ["ash", "beech", "cedar"]}, source="here")


def kept(tmp_path, actors, found=None, task=None):
    record(tmp_path / samples.FILE, task or Task("generation"), found or data(), "test", actors, CPU)
    return Generated.load(tmp_path / samples.FILE)


@pytest.mark.parametrize("noise", [Flow(), Flow(shift=3.0), VP(), VE()], ids=["flow", "shifted", "vp", "ve"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_way_begins_in_the_noise_and_ends_in_the_sample(noise, steps):
    actor = student(noise, steps=steps, start=0.99)
    batch = data()["test"].__getitems__([3, 8, 20])
    made, z, course = generate(actor, batch, [2, 0])
    torch.testing.assert_close(z, normal(fold(batch["id"], 0x6E), 2), rtol=0, atol=0)
    torch.testing.assert_close(made, actor(batch)["generated"], rtol=0, atol=0)
    taken = course.thinned(99)
    assert len(taken) == steps
    sigma = noise.sigma(noise.grid(steps, 0.99)[0])
    torch.testing.assert_close(taken[0][0], sigma * z[[2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(course.end, made[[2, 0]], rtol=0, atol=0)
    torch.testing.assert_close(taken[-1][1], made[[2, 0]])  # without noise, DDIM ends in what is predicted
    for (x_t, x0, alpha, sigma), (after, _, a, s) in pairwise(taken):
        torch.testing.assert_close(after, a * x0 + s * (x_t - alpha * x0) / sigma, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 300), st.integers(2, 12))
def test_of_a_long_course_steps_stay_that_are_spread_over_it(steps, most):
    course = Course([0], most)
    for i in range(steps):
        said = torch.full((1,), float(i))
        course(said, type("said", (), {"x0": -said, "alpha": torch.ones(1), "sigma": torch.ones(1)}), said + 1)
    assert len(course.steps) <= most
    for count in (1, 2, most, most + 1):
        taken = [int(x_t) for x_t, *_ in course.thinned(count)]
        assert len(taken) == min(count, steps) or steps > most
        assert len(taken) <= count
        assert taken[0] == 0
        assert taken[-1] == steps - 1 or count == 1
        assert taken == sorted(set(taken))
    assert int(course.end) == steps
    if steps <= most:
        assert [int(x_t) for x_t, *_ in course.thinned(most)] == list(range(steps))


@pytest.mark.parametrize("noise", [Flow(), VP(), VE(most=20.0)], ids=["flow", "vp", "ve"])
@pytest.mark.parametrize("solver", ["ddim", "renoise", "heun"])
def test_what_is_kept_of_points(noise, solver, tmp_path):
    actor = student(noise, steps=3, solver=solver)
    seen = kept(tmp_path, {"student": actor})
    assert (seen.kind, seen.shape) == ("points", (2,))
    states, denoised, times = (seen.of("student", what) for what in ("states", "denoised", "times"))
    assert states.shape == (samples.WAYS, 4, 2)
    assert denoised.shape == (samples.WAYS, 3, 2)
    torch.testing.assert_close(times, noise.grid(3), rtol=1e-4, atol=1e-5)
    ways, ids = seen.tensors["ways"], seen.tensors["id"]
    torch.testing.assert_close(states[:, -1], seen.of("student")[ways], rtol=0, atol=0)
    z, (alpha, sigma) = normal(fold(ids[ways], 0x6E), 2), (f(noise.grid(3)[:1]) for f in (noise.alpha, noise.sigma))
    scale = max(1.0, math.hypot(float(alpha), float(sigma)))
    torch.testing.assert_close(states[:, 0], sigma * z / scale)
    if solver != "heun":
        torch.testing.assert_close(denoised[:, -1], states[:, -1])
    place = {int(i): k for k, i in enumerate(data()["test"].tensors["id"])}
    rows = data()["test"].__getitems__([place[int(i)] for i in ids])
    torch.testing.assert_close(seen.of("real"), rows["x"], rtol=0, atol=0)
    torch.testing.assert_close(seen.of("student"), actor(rows)["generated"])
    assert seen.conditions == tuple(["ash", "beech", "cedar"][k] for k in rows["label"].tolist())
    assert seen.classes
    facts = seen.facts["student"]
    assert (facts["steps"], facts["solver"], facts["noise"]) == (3, solver, noise.spec()["use"])
    assert facts["evaluations"] == (5 if solver == "heun" else 3)


def test_rows_and_bytes_are_bounded_and_spread(tmp_path):
    seen = kept(tmp_path, {"student": student(steps=1)}, data(rows=3000))
    ids = seen.tensors["id"]
    assert len(ids) == samples.POINTS
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert ids.float().mean() == pytest.approx(1600, abs=150)
    assert len(set(seen.conditions)) == 3  # rows at even distances could all be of one class
    assert {seen.conditions[i] for i in seen.tensors["ways"][:3]} == {"ash", "beech", "cedar"}
    wide = kept(tmp_path, {"student": painter(128, 3)}, data((3, 128, 128), rows=20))
    assert wide.of("student").shape == (16, 3, 96, 96)
    assert wide.of("student", "states").shape == (6, 3, 3, 48, 48)
    assert (tmp_path / samples.FILE).stat().st_size < 1.5e6


def test_pictures_are_levels_of_the_datas_range(tmp_path):
    actor = painter()
    seen = kept(tmp_path, {"student": actor}, data((1, 8, 8)))
    ways = seen.tensors["ways"]
    assert seen.of("student").dtype == seen.of("real").dtype == torch.uint8
    assert torch.equal(seen.of("student", "states")[:, -1], seen.of("student")[ways])
    assert torch.equal(seen.of("student", "denoised")[:, -1], seen.of("student")[ways])
    rows = data((1, 8, 8))["test"].__getitems__((seen.tensors["id"] - 100).tolist())
    assert torch.equal(seen.of("real"), levels(rows["x"], (-1, 1)))
    z = normal(fold(seen.tensors["id"][ways], 0x6E), 1, 8, 8)
    assert torch.equal(seen.of("student", "states")[:, 0], levels(z, (-1, 1)))


def test_long_ways_of_pictures_are_thinned(tmp_path):
    actor = painter()
    actor.model.sampling = Sampling(steps=20)
    seen = kept(tmp_path, {"student": actor}, data((1, 8, 8)))
    times = seen.of("student", "times")
    assert len(times) == samples.STEPS + 1
    assert (times[0], times[-2], times[-1]) == (1.0, pytest.approx(0.05), 0.0)
    assert seen.of("student", "states").shape[1] == samples.STEPS + 1
    assert seen.of("student", "denoised").shape[1] == samples.STEPS


class Latent(PictureDenoiser):
    """Denoises pictures of half the side."""

    def decoded(self, x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_latents_are_kept_decoded(tmp_path):
    torch.manual_seed(0)
    actor = Student(Latent(1, 8, width=8))
    actor.look_at(["x", "label", "id"])
    plain = painter(16)
    seen = kept(tmp_path, {"student": actor, "teacher": plain}, data((1, 16, 16)))
    assert seen.of("student").shape[1:] == seen.of("teacher").shape[1:] == (1, 16, 16)
    assert seen.of("student", "states").shape[2:] == (1, 16, 16)
    assert torch.equal(seen.of("student", "states")[:, -1], seen.of("student")[seen.tensors["ways"]])
    assert seen.facts["student"]["latent"]
    assert not seen.facts["teacher"]["latent"]
    assert not seen.facts["teacher"]["same_noise"]


def test_teacher_student_and_control_begin_alike(tmp_path):
    actors = {"teacher": student("vp", Teacher, 1, steps=4), "student": student(steps=1), "control": student(seed=2)}
    seen = kept(tmp_path, actors)
    assert [seen.facts[who]["same_noise"] for who in actors] == [True] * 3
    first = [seen.of(who, "states")[:, 0] for who in actors]
    torch.testing.assert_close(first[0], first[1], rtol=1e-3, atol=1e-3)
    assert torch.equal(first[1], first[2])


@pytest.mark.parametrize("shape", [(3,), (4, 8, 8), (1,), (5, 6)])
def test_of_other_shapes_only_the_facts_are_kept(shape, tmp_path):
    actor = student(steps=7)
    seen = kept(tmp_path, {"student": actor}, data(shape))
    assert (seen.kind, seen.shape) == ("other", shape)
    assert seen.facts["student"]["steps"] == 7
    assert set(seen.tensors) == {"id", "ways"}


def test_a_task_that_generates_nothing_leaves_no_file(tmp_path):
    seen = kept(tmp_path, {"student": student()}, task=Task("classification"))
    assert list(tmp_path.iterdir()) == []
    assert seen == Generated()


class Own(torch.nn.Module):
    """A generator that is no denoising network."""

    def forward(self, x):
        return {"generated": x + 1}


def test_whoever_just_generates_has_samples_and_several_teachers_have_none(tmp_path):
    teachers = Teachers({"a": student(kind=Teacher), "b": student(kind=Teacher)})
    seen = kept(tmp_path, {"student": Student(Own(), view="x"), "teacher": teachers, "control": None})
    torch.testing.assert_close(seen.of("student"), seen.of("real") + 1)
    assert seen.of("student", "states") is None
    assert seen.of("teacher") is None
    assert seen.conditions == ()


class Texts(PointDenoiser):
    """Asked for by texts."""

    def understood(self, condition):
        return {} if condition is None else {"condition": torch.tensor([len(text) % 3 for text in condition])}


def test_texts_are_kept_as_they_are_and_cut(tmp_path):
    class Rows(TensorSplit):
        def __getitems__(self, indices):
            return super().__getitems__(indices) | {"prompt": [f"<b>{i}" + "long" * 200 for i in indices]}

    rows = Rows({"x": torch.rand(9, 2)})
    actor = Student(Texts(width=8, classes=3), view={"keys": ["x"], "named": {"id": "id", "condition": "prompt"}})
    seen = kept(tmp_path, {"student": actor}, Data({"test": rows}, {}, {}, source="here"))
    assert seen.conditions[4].startswith("<b>4long")
    assert {len(text) for text in seen.conditions} == {samples.LONGEST}
    assert not seen.classes


def test_conditions_by_position_and_classes_without_names(tmp_path):
    torch.manual_seed(0)
    actor = Student(PointDenoiser(width=8, classes=3), view=["x", "label"])
    found = data()
    found.labels.clear()
    assert set(kept(tmp_path, {"student": actor}, found).conditions) == {"0", "1", "2"}


def test_levels_and_sizes():
    assert levels(torch.tensor([[-1.0, 0.0, 1.0, 9.0, math.nan]]), (-1, 1)).tolist() == [[0, 128, 255, 255, 128]]
    assert span_of(torch.tensor([0.1, 0.9])) == (0, 1)
    assert span_of(torch.tensor([-0.99, 0.9])) == (-1, 1)
    assert span_of(torch.tensor([-3.0, 5.0])) == (-3, 5)
    assert span_of(torch.tensor([7.0, 7.0])) == (7, 8)
    checks = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert shrunk(checks, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert shrunk(checks, 4) is checks
    assert shrunk(torch.zeros(1, 3, 300, 100), 96).shape == (1, 3, 96, 32)
    assert [kind_of(s) for s in ((2,), (1, 8, 8), (3, 5, 9), (2, 8, 8))] == ["points", *["pictures"] * 2, "other"]


def test_files_that_are_not_ours_are_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    assert Generated.load(path) == Generated()
    for metadata in (None, {"generated": "{"}, {"generated": json.dumps([1])}):
        save_file({"id": torch.zeros(1)}, path, metadata)
        assert Generated.load(path) == Generated()
