"""Generators that cannot come to any good, through `limbeck.distill`: said before the first step, or with the step, the network and the term."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_generation import MEANS, recipe
from torch import nn

import limbeck
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.stepper import NonFiniteError
from limbeck.errors import RecipeError

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "adapters"))
FORMULA = {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.1, "labels": [0, 1, 2]}}
PLAIN = {"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8}}


def refused(tmp_path, match, error=RecipeError, **changes):
    """The run is refused in this sentence, and leaves nothing behind."""
    with pytest.raises(error, match=match):
        limbeck.distill(**recipe(control="none", **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def latents(scale):
    """Encoded pictures of five classes, 4 channels of 4x4, of this standard deviation."""
    g = torch.Generator().manual_seed(0)
    x, label = scale * torch.randn(24, 4, 4, 4, generator=g), torch.arange(24) % 5
    parts = {"train": (0, 12), "validation": (12, 18), "test": (18, 24)}
    splits = {name: TensorSplit({"latent": x[a:b], "label": label[a:b]}, a) for name, (a, b) in parts.items()}
    return Data(splits, {"latent": "latents", "label": ""}, {"label": list("abcde")}, source="latents")


SCALED = [(1 / 0.18215, "5.*were not multiplied"), (0.18215, "0.18.*were twice multiplied"), (1.0, None)]


@pytest.mark.parametrize(("scale", "told"), SCALED)
def test_latents_that_were_not_scaled_or_twice(scale, told, tmp_path):
    pytest.importorskip("diffusers")
    import pipelines

    known = {"model": str(pipelines.classes(tmp_path / "teacher")), "args": {"pixels": "latents"}}
    keys = {
        "data": lambda: latents(scale),
        "teacher": known,
        "student": known,
        "method": {"use": "dmd2", "critic_steps": 1},
    }
    keys["train"] = {"steps": 1, "batch_size": 4}
    if told:
        sentence = f"the latents have a standard deviation of {told} by the autoencoder's scaling_factor, 0.18215"
        refused(tmp_path, sentence, **keys)
    else:
        run = limbeck.distill(**recipe(control="none", **keys), out=tmp_path / "run")
        assert json.loads((run.folder / "result.json").read_text())["status"] == "finished"


def test_pictures_of_another_range(tmp_path):
    pytest.importorskip("diffusers")
    import pipelines
    from test_generation_of_pictures import pictures

    def signed():
        data = pictures()
        for split in data.splits.values():
            split.tensors["image"] = 2 * split.tensors["image"] - 1
        return Data(data.splits, data.columns, data.labels, source="signed")

    known = {"model": str(pipelines.pixels(tmp_path / "teacher"))}
    keys = {"data": signed, "teacher": known, "student": known, "method": {"use": "dmd2"}}
    refused(
        tmp_path,
        "the student is told that pictures are in .0, 1., and they go from -.*student.args.pixels=signed",
        **keys,
    )


@pytest.mark.parametrize("method", ["dmd2", "vsd", "boot", "mlcm"])
def test_guidance_by_an_unconditional_teacher(method, tmp_path):
    teacher = {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.1}}
    keys = {"method": {"use": method, "guidance": 2.0}, "teacher": teacher, "student": PLAIN}
    refused(
        tmp_path,
        "guidance=2.0 needs a teacher that also knows what to say without the condition.*Mixture does not",
        **keys,
    )


def test_guidance_by_an_unconditional_pipeline_and_by_nobody(tmp_path):
    pytest.importorskip("diffusers")
    import pipelines
    from test_generation_of_pictures import pictures

    known = {"model": str(pipelines.pixels(tmp_path / "teacher"))}
    keys = {"data": pictures, "teacher": known, "student": known, "method": {"use": "dmd2", "guidance": 2.0}}
    refused(tmp_path, "this DiffusersNetwork does not. Set method.guidance=1", **keys)
    keys = {"teacher": None, "method": {"use": "denoising", "guidance": 2.0}}
    refused(tmp_path, "guidance=2.0 is a scale of the teacher's answers, and there is no teacher", **keys)


@pytest.mark.parametrize("method", ["dmd2", "consistency"])
def test_a_teacher_whose_noise_does_not_reach_the_students_start(method, tmp_path):
    """Six steps of noise leave much of the data; the student begins at pure noise, or where it is told to: then there is nothing to refuse."""
    short = {"use": "vp", "betas": "linear", "steps": 1000, "end": 0.002}
    teacher = {"model": FORMULA["model"], "args": FORMULA["args"] | {"noise": short}}
    student = {"model": PLAIN["model"], "args": {"width": 8, "classes": 3, "noise": "vp", "head": "v"}}
    keys = {"method": {"use": method, "guidance": 1.0}, "teacher": teacher, "student": student}
    refused(
        tmp_path,
        r"begins at a noise level .sigma / alpha. of 157.4, and the teacher has been trained up to 1.3\d*.*never seen",
        **keys,
    )
    keys["method"] |= {"start": 0.3}
    run = limbeck.distill(
        **recipe(control="none", **keys | {"train": {"steps": 1, "batch_size": 8}}), out=tmp_path / "run"
    )
    assert json.loads((run.folder / "result.json").read_text())["status"] == "finished"


class Brittle(nn.Module):
    """Flows to nothing, but for a weight that, once it has learnt, is no number below a time."""

    def __init__(self, below=0.6):
        super().__init__()
        self.below, self.gain = below, nn.Parameter(torch.ones(1))

    def forward(self, x, time):
        broken = (time[:, None] < self.below) & (self.gain != 1)
        return self.gain * x / torch.where(broken, 0.0, 1.0)


class Broken(nn.Module):
    """No numbers below a time, from the first on."""

    def __init__(self, below=0.6):
        super().__init__()
        self.below, self.gain = below, nn.Parameter(torch.ones(1))

    def forward(self, x, time):
        return self.gain * x / (time[:, None] > self.below)


def own(kind, **args):
    """One's own module as a network of flows."""
    given = {"network": f"{__name__}:{kind}", "noise": "flow", "head": "velocity", "shape": [2], "args": args}
    return {"model": "limbeck.diffusion.network:Plain", "args": given}


UNCONDITIONAL = {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.1}}
STEP = {"steps": 3, "batch_size": 16, "lr": 1e-2, "clip": None}


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_network_whose_samples_are_no_numbers_is_found_before_the_first_step(whose, tmp_path):
    keys = {"teacher": UNCONDITIONAL, "student": PLAIN, "method": {"use": "dmd2"}} | {whose: own("Broken")}
    match = "sampling step 9 of 20 .time 0.6., the .*Plain.: its velocity is not finite; its input was finite"
    with pytest.raises(FloatingPointError, match=match):
        limbeck.distill(**recipe(control="none", **keys), out=tmp_path / "run")


STILL = STEP | {"trainees": {"critic": {"lr": 1e-30}}}  # the critic begins as the student, and does not break with it


def test_a_rollout_that_is_not_finite_and_a_sample_that_is_not(tmp_path):
    """From the second step on, what the student's first update broke: in which training step, in which of the sampler, and whose."""
    keys = {"teacher": UNCONDITIONAL, "student": own("Brittle", below=0.7), "train": STILL}
    keys["method"] = {"use": "tdm", "sampling_steps": 3, "guidance": 1.0}
    match = "training step 1, before the updates of student and critic: sampling step 2 of 2 .time 0.6667., the student .Plain.: its velocity is not finite; its input was finite"
    with pytest.raises(FloatingPointError, match=match):
        limbeck.distill(**recipe(control="none", **keys), out=tmp_path / "rollout")
    keys |= {"student": own("Brittle", below=1.1), "method": {"use": "dmd2", "critic_steps": 1}}
    match = "training step 1, before the updates of student and critic: the samples of the student .Plain. from time 1 are not finite in 16 of 16 rows; its input was finite"
    with pytest.raises(FloatingPointError, match=match):
        limbeck.distill(**recipe(control="none", **keys), out=tmp_path / "sample")


def test_validation_that_is_not_finite(tmp_path):
    keys = {"teacher": UNCONDITIONAL, "student": own("Brittle"), "train": STEP | {"steps": 1}}
    keys["method"] = {"use": "consistency", "sampling_steps": 2, "ema": 0.0}
    with pytest.raises(
        FloatingPointError,
        match="^sampling step 2 of 2 .time 0.5., the student .Plain.: its velocity is not finite; its input was finite",
    ):
        limbeck.distill(**recipe(control="none", **keys), out=tmp_path / "run")


def test_a_term_that_is_not_finite_is_named_with_its_step_and_rows(tmp_path):
    """Where it is no sample that fails."""
    keys = {"teacher": UNCONDITIONAL, "student": own("Brittle", below=0.9), "train": STEP}
    keys["method"] = {"use": "consistency", "ema": 0.0}
    with pytest.raises(
        NonFiniteError, match="step 1: the part 'consistency' of the loss is not finite. Samples of the batch"
    ):
        limbeck.distill(**recipe(control="none", **keys), out=tmp_path / "run")


@pytest.mark.parametrize("method", [{"use": "dmd2"}, {"use": "vsd", "guidance": 1.0, "drop": 0.0}])
def test_a_teacher_that_breaks_where_no_sampler_goes_stops_the_student(method, tmp_path):
    """It is measured first, by steps that end at 0.05; training asks it (and the critic, its copy) below."""
    keys = {"teacher": own("Broken", below=0.04), "student": PLAIN, "train": STEP | {"steps": 60}}
    with pytest.raises(NonFiniteError, match="the part '(matching|denoising)' of the loss is not finite"):
        limbeck.distill(**recipe(control="none", **keys, method=method), out=tmp_path / "run")
