"""A pipeline of diffusers by its folder becomes a generator of one step, ships as a pipeline, and opens without us."""

import json
import sys
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit

diffusers = pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "adapters"))
import pipelines  # noqa: E402


def pictures():
    """Grey 8x8 pictures of five classes, brighter ones for higher classes."""
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (24,), generator=g)
    image = (torch.rand(24, 1, 8, 8, generator=g) * 0.2 + 0.15 * label[:, None, None, None]).clamp(0, 1)
    parts = {"train": (0, 12), "validation": (12, 18), "test": (18, 24)}
    splits = {name: TensorSplit({"image": image[a:b], "label": label[a:b]}, a) for name, (a, b) in parts.items()}
    return Data(splits, {"image": "image", "label": ""}, {"label": list("abcde")}, source="pictures")


def test_the_recipe_of_a_pipeline_gives_a_one_step_pipeline(tmp_path):
    place = pipelines.pixels(tmp_path / "teacher", classes=5)
    known = {"model": str(place), "args": {"null_class": 4}}
    run = limbeck.distill(
        task="generation",
        data=pictures,
        teacher=known,
        student=known,
        method={"use": "dmd2", "sampling_steps": 1, "critic_steps": 2, "guidance": 1.75, "gan_weight": 1e-3},
        train={"steps": 2, "batch_size": 6, "lr": 1e-3, "ema": 0.9},
        control="start",
        out=tmp_path / "run",
    )
    result = json.loads((run.folder / "result.json").read_text())
    assert result["student"]["figures"]["evaluations"] == result["control"]["figures"]["evaluations"] == 1
    assert result["teacher"]["figures"]["evaluations"] == 40  # guided as it taught

    student = Student(run.folder)
    batch = pictures()["test"].__getitems__([0, 1])
    ours = student(batch)["generated"]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(run.folder / "student" / "pipeline")
    z = student.model.noise_for(None, batch["id"])
    pipeline.scheduler.set_timesteps(1)
    t = pipeline.scheduler.timesteps[0]
    with torch.no_grad():
        said = pipeline.unet(z, t, class_labels=batch["label"]).sample
    theirs = pipeline.scheduler.step(said, t, z).prev_sample
    torch.testing.assert_close((theirs / 2 + 0.5).clamp(0, 1), ours, rtol=1e-2, atol=1e-2)
    first = diffusers.UNet2DModel.from_pretrained(place, subfolder="unet")
    assert not all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), first.parameters()))
