"""Latents and encoded texts that are stored once: a training reads the same values, and asks no encoder."""

import json
import sys
from functools import wraps
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.data.load import load_data
from limbeck.engine import random_state
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.teachers.stored import Stored

diffusers = pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "adapters"))
import pipelines  # noqa: E402


def pictures(seed=0):
    """Coloured 8x8 pictures with a label and a prompt of letters."""
    g = torch.Generator().manual_seed(seed)
    words = ["red", "green", "blue", "grey", "none"]
    splits = ["train"] * 15 + ["validation"] * 5 + ["test"] * 5
    rows = []
    for i, split in enumerate(splits):
        image = (torch.rand(3, 8, 8, generator=g) * 0.3 + 0.15 * (i % 5)).clamp(0, 1)
        rows.append({"image": image, "label": i % 5, "prompt": words[i % 5], "split": split})
    columns = {"label": {"use": "label"}, "prompt": {"use": "text"}}
    return load_data(rows, columns=columns)


@pytest.fixture(scope="module", params=["classes", "texts"])
def place(request, tmp_path_factory):
    return getattr(pipelines, request.param)(tmp_path_factory.mktemp(request.param) / "pipeline")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return pipelines.classes(tmp_path_factory.mktemp("labelled") / "pipeline")


def recipe(place, **more):
    keys = {"task": "generation", "data": pictures, "teacher": str(place), "student": str(place), "control": "none"}
    method = {"use": "dmd2", "critic_steps": 2, "guidance": [1.5, 3.0], "gan_weight": 0.1, "start": 0.9}
    train = {"epochs": 2, "batch_size": 6, "lr": 1e-3, "precision": "fp32", "log_every": 1}
    return keys | {"method": method, "train": train} | more


class Lines(Log):
    def __init__(self):
        super().__init__(None)
        self.losses = []

    def write(self, line):
        self.losses += [line["loss"]] if "trainee" in line else []


def trained(keys):
    """The losses of all updates, without what a run measures around them."""
    made, lines = limbeck.Recipe(keys), Lines()
    data, student, teacher = made.build_data(), made.build_student(), made.build_teacher()
    for actor in (student, teacher):
        actor.look_at(data.columns)
    random_state.seed_all(0)
    Course(made.build_plan(), Situation(student, teacher, None, data, made.train, 0, log=lines)).run()
    return torch.tensor(lines.losses)


@pytest.fixture
def calls(monkeypatch):
    """How often the autoencoder was asked to encode, and texts were."""
    seen = {"pictures": 0, "texts": 0}
    kind, encode = diffusers.AutoencoderKL, diffusers.AutoencoderKL.encode

    def counted(self, *args, **options):
        seen["pictures"] += 1
        return encode(self, *args, **options)

    monkeypatch.setattr(kind, "encode", counted)
    say = diffusers.StableDiffusionPipeline.encode_prompt

    @wraps(say)
    def told(self, prompt, *args, **options):
        seen["texts"] += prompt != [""]
        return say(self, prompt, *args, **options)

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "encode_prompt", told)
    return seen


SEEN = {"keys": ["image"], "named": {"id": "id"}, "transforms": [{"use": "noise", "std": 0.05, "keys": ["image"]}]}


@pytest.mark.parametrize("views", [False, True], ids=["plain", "augmented"])
def test_a_training_on_the_cache_is_the_training_on_pictures(place, views, calls, tmp_path):
    plain = recipe(place)
    if views:
        name = "label" if "classes" in str(place) else "prompt"
        seen = SEEN | {"named": {"id": "id", "condition": name}}
        plain |= {"student": {"model": str(place), "view": seen}, "teacher": {"model": str(place), "view": seen}}
    online, before = trained(plain), dict(calls)
    limbeck.cache(**plain, cache={"dtype": "fp32", "views": 2}, out=tmp_path / "codes")
    calls |= {"pictures": 0, "texts": 0}
    cached = trained(plain | {"data": {"path": pictures, "encoded": str(tmp_path / "codes")}})
    assert len(online) == 9  # six steps, every other one of the student, too
    torch.testing.assert_close(cached, online, rtol=1e-5, atol=1e-6)
    assert calls["pictures"] == 0
    assert before["pictures"] > 6
    if "texts" in str(place):
        assert calls["texts"] <= before["texts"] - 6  # what is left are the looks of setup


def test_a_run_on_the_cache_ends_as_one_on_pictures(labelled, tmp_path):
    limbeck.cache(**recipe(labelled), cache={"dtype": "fp32"}, out=tmp_path / "codes")
    data = {"path": pictures, "encoded": str(tmp_path / "codes")}
    found = [limbeck.distill(**recipe(labelled, data=d), out=tmp_path / str(i)) for i, d in enumerate((pictures, data))]
    ours, theirs = (json.loads((run.folder / "result.json").read_text())["student"]["metric"] for run in found)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert found[1].recipe.to_mapping()["data"]["encoded"] == str(tmp_path / "codes")
    assert "encoded" not in found[0].recipe.to_mapping()["data"]


def test_what_is_stored_is_what_networks_are_shown(place, tmp_path):
    stored = limbeck.cache(**recipe(place), cache={"dtype": "fp32"}, out=tmp_path / "codes")
    data = pictures()
    batch = data["train"].__getitems__([3, 0, 7])
    found = stored(batch)
    student = limbeck.Student(str(place))
    student.look_at(data.columns)
    x = batch["image"] * 2 - 1
    vae = student.model.companions.part("vae")
    with torch.no_grad():
        torch.testing.assert_close(found["x0"], vae.encode(x).latent_dist.mode() * vae.config.scaling_factor)
    if "texts" in str(place):
        assert set(found) == {"x0", "student.condition"}  # the teacher reads the same, so it is stored once
        torch.testing.assert_close(
            found["student.condition"], student.model.understood(list(batch["prompt"]))["condition"]
        )
        assert stored.parameters_count() == sum(
            p.numel() for part in ("vae", "text_encoder") for p in student.model.companions.part(part).parameters()
        )
    else:
        assert torch.equal(found["student.condition"], batch["label"])
        assert torch.equal(found["teacher.condition"], batch["label"])
    few = limbeck.cache(**recipe(place), cache={"signals": ["x0"], "splits": ["train"]}, out=tmp_path / "few")
    assert list(few(batch)) == ["x0"]
    assert few(batch)["x0"].dtype == torch.float32  # stored in fewer bits, read as it was given
    with pytest.raises(RecipeError, match=r"the networks are not shown 'x1'\. There is: student\.condition"):
        limbeck.cache(**recipe(place), cache={"signals": ["x1"]}, out=tmp_path / "none")


def test_other_encoders_views_and_data_are_refused(labelled, tmp_path):
    folder = tmp_path / "codes"
    limbeck.cache(**recipe(labelled), out=folder)
    here = {"path": pictures, "encoded": str(folder)}
    other = pipelines.classes(tmp_path / "other")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(other)
    with torch.no_grad():
        pipeline.vae.quant_conv.weight.add_(0.1)
    pipeline.save_pretrained(other)
    with pytest.raises(RecipeError, match="was encoded by other encoders"):
        limbeck.distill(**recipe(other, data=here), out=tmp_path / "a")
    view = SEEN | {"named": {"id": "id", "condition": "label"}}
    with pytest.raises(RecipeError, match="as the student saw them through"):
        limbeck.distill(
            **recipe(labelled, data=here, student={"model": str(labelled), "view": view}), out=tmp_path / "b"
        )
    with pytest.raises(RecipeError, match="holds answers about"):
        limbeck.distill(**recipe(labelled, data=here | {"args": {"seed": 1}}), out=tmp_path / "c")
    with pytest.raises(RecipeError, match="the teacher is a"):
        limbeck.distill(**recipe(labelled, teacher=str(folder)), out=tmp_path / "d")
    assert Stored(folder).header["shown"]["kind"] == "encoded"


def test_pixels_are_not_encoded_and_a_student_is_needed(tmp_path):
    place = pipelines.pixels(tmp_path / "pixels")
    with pytest.raises(RecipeError, match="nothing is encoded, so there is nothing to store"):
        limbeck.cache(**recipe(place, data=grey), out=tmp_path / "codes")
    with pytest.raises(RecipeError, match="the recipe has no student"):
        limbeck.cache(task="generation", data=grey, teacher=str(place), out=tmp_path / "codes")


def grey():
    rows = [{"image": torch.rand(1, 8, 8), "split": split} for split in ("train", "train", "validation", "test")]
    return load_data(rows)


def test_a_teachers_answers_are_no_encoded_data(tmp_path):
    rows = [{"x": torch.randn(4), "label": i % 2, "split": "train" if i < 8 else "validation"} for i in range(12)]
    torch.save(rows, tmp_path / "rows.pt")
    data = load_data(rows)
    limbeck.cache(
        data=data,
        teacher=limbeck.Teacher(torch.nn.Linear(4, 2), view="x"),
        cache={"signals": ["logits"]},
        out=tmp_path / "a",
    )
    with pytest.raises(RecipeError, match="holds what a teacher said, not encoded data"):
        limbeck.distill(
            data={"path": data, "encoded": str(tmp_path / "a")},
            student=limbeck.Student(torch.nn.Linear(4, 2), view="x"),
            method="supervised",
            out=tmp_path / "run",
        )
