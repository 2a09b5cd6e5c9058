"""Pipelines that ship: the same pictures as the student from the same latents, in a process without us; what cannot be is refused or said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "adapters"))
import pipelines  # noqa: E402

from limbeck.actors import Student  # noqa: E402
from limbeck.data.tensors import Data, TensorSplit  # noqa: E402
from limbeck.diffusion.network import sample_with  # noqa: E402
from limbeck.errors import RecipeError  # noqa: E402
from limbeck.models.adapters import pipeline_folder, schedulers  # noqa: E402
from limbeck.models.adapters.pipeline_folder import save_pipeline  # noqa: E402
from limbeck.models.toy import PointDenoiser  # noqa: E402
from limbeck.recipe import Recipe  # noqa: E402
from limbeck.shipping import exporting, opened, to_diffusers  # noqa: E402
from limbeck.shipping.package import Package, Rows  # noqa: E402
from limbeck.sources import operate  # noqa: E402
from limbeck.tasks import Task  # noqa: E402


def flow(shift):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    zero = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return {
        "texts": pipelines.texts(root / "texts"),
        "classes": pipelines.classes(root / "classes"),
        "plain": pipelines.pixels(root / "plain"),
        "labelled": pipelines.pixels(root / "labelled", classes=5),
        "zero": pipelines.pixels(root / "zero", scheduler=zero),
        "flow": pipelines.pixels(root / "flow", scheduler=flow(1.0)),
        "shifted": pipelines.pixels(root / "shifted", scheduler=flow(3.0)),
        "karras": pipelines.pixels(root / "karras", scheduler=diffusers.EDMEulerScheduler()),
    }


def student(place, args=None, surgery=(), **sampling):
    made = Student(place, args=args)
    made.look_at(["image", "prompt", "label", "id"])
    for by, structure in surgery:
        operate(made.source, by, structure)
    sample_with(made.model, **sampling)
    return made


def shipped(made, folder, rows=None):
    return to_diffusers.write(Package(made, folder, rows=rows))


CASES = [
    ("texts", {"steps": 4, "solver": "renoise"}, "num_inference_steps=4, guidance_scale=1", "LCMScheduler"),
    ("texts", {"steps": 1, "solver": "renoise"}, "num_inference_steps=1, guidance_scale=1", "DDIMScheduler"),
    ("texts", {"steps": 2, "solver": "ddim"}, "num_inference_steps=2, guidance_scale=1", "DDIMScheduler"),
    ("texts", {"steps": 4, "solver": "heun"}, "num_inference_steps=4, guidance_scale=1", "HeunDiscreteScheduler"),
    ("texts", {"steps": 4, "solver": "renoise", "start": 0.8}, "num_inference_steps=4, guidance_scale=1", "LCMScheduler"),
    ("texts", {"steps": 2, "solver": "ddim", "guidance": 2.5}, "num_inference_steps=2, guidance_scale=2.5", "DDIMScheduler"),
    ("texts", {"steps": 2, "eta": 1.0}, "num_inference_steps=2, guidance_scale=1, eta=1.0", "DDIMScheduler"),
    ("classes", {"steps": 4, "solver": "renoise"}, "[3], num_inference_steps=4, guidance_scale=1", "LCMScheduler"),
    ("plain", {"steps": 4, "solver": "ddim", "start": 0.8}, "num_inference_steps=4", "DDIMScheduler"),
    ("zero", {"steps": 5, "solver": "renoise"}, "num_inference_steps=5", "LCMScheduler"),
    ("flow", {"steps": 4, "solver": "renoise"}, "num_inference_steps=4", "FlowMatchEulerDiscreteScheduler"),
    ("flow", {"steps": 3, "solver": "ddim"}, "num_inference_steps=3", "FlowMatchEulerDiscreteScheduler"),
    ("shifted", {"steps": 2, "solver": "renoise"}, "num_inference_steps=2", "FlowMatchEulerDiscreteScheduler"),
    ("shifted", {"steps": 1}, "num_inference_steps=1", "FlowMatchEulerDiscreteScheduler"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "sampling", "call", "scheduler"), CASES)
def test_a_plain_call_gives_the_students_pictures(places, tmp_path, place, sampling, call, scheduler):
    facts = shipped(student(places[place], **sampling), tmp_path)
    assert facts["check"]["largest_error"] <= 1e-4
    assert f"({call}).images" in facts["usage"].replace('"a prompt", ', "")
    assert facts["told"] == []
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][1] == scheduler


ALONE = """
import sys, torch
from safetensors.torch import load_file, save_file
from diffusers import DiffusionPipeline
given = load_file("given.safetensors")
pipe = DiffusionPipeline.from_pretrained("export")
pipe.set_progress_bar_config(disable=True)
images = pipe(["a cat", "dog"], num_inference_steps=4, guidance_scale=1, latents=given["latents"],
    generator=torch.Generator().manual_seed(7), output_type="np").images
save_file({"images": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()}, "made.safetensors")
assert not any(name.split(".")[0] == "limbeck" for name in sys.modules)
"""


def test_in_a_process_without_us_the_pictures_are_the_students(places, tmp_path):
    """With a guidance scale that was an input of the student: in the pipeline it is a part of the weights."""
    from safetensors.torch import load_file, save_file

    made = student(
        places["texts"],
        surgery=[("limbeck.diffusion.further:hear", {"defaults": {"guidance_scale": 7.5}})],
        steps=4,
        solver="renoise",
    )
    torch.nn.init.normal_(
        made.model.numbers.layers["guidance_scale"].weight, generator=torch.Generator().manual_seed(0)
    )
    shipped(made, tmp_path / "export")
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model = made.model
        ours = model.generate(
            z, model.understood(["a cat", "dog"]), fresh=lambda step: torch.randn(2, 4, 4, 4, generator=g)
        )
        ours = model.decoded(ours)
        without = model.prediction(
            z, torch.full((2,), 999.0), model.understood(["a cat", "dog"]) | {"guidance_scale": torch.zeros(2)}
        )
        usual = model.prediction(z, torch.full((2,), 999.0), model.understood(["a cat", "dog"]))
    assert not torch.allclose(without.value, usual.value, atol=1e-2)  # the further number says something
    save_file({"latents": z * float(model.noise.sigma(torch.tensor(1000.0)))}, tmp_path / "given.safetensors")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(load_file(tmp_path / "made.safetensors")["images"], ours, rtol=0, atol=1e-4)


def surgeries():
    return [
        ("limbeck.diffusion.further:hear", {"defaults": {"guidance_scale": 7.5}}),
        ("limbeck.diffusion.styles:learn_styles", {"usual": [0.25, 0.75]}),
        ("limbeck.diffusion.negative:subtract", {}),
    ]


def taught(made):
    """As after training: what was added says something."""
    g = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(made.model.numbers.layers["guidance_scale"].weight, generator=g)
    torch.nn.init.normal_(made.model.styles.rows, generator=g)
    return made


def test_further_numbers_and_styles_are_folded_into_what_ships_and_the_card_says_so(places, tmp_path, monkeypatch):
    made = taught(student(places["texts"], surgery=surgeries(), steps=2, solver="ddim"))
    before = made.model.network.time_embedding.linear_2.bias.clone()
    facts = shipped(made, tmp_path / "one")
    assert torch.equal(made.model.network.time_embedding.linear_2.bias, before)
    assert [sentence.split(" is ")[0] for sentence in facts["told"][:2]] == [
        "Guidance_scale = 7.5",
        "The weights 0.25, 0.75 of its teachers' styles",
    ]
    assert "negative_prompt" in facts["told"][2]
    from contextlib import nullcontext

    monkeypatch.setattr(pipeline_folder, "folded", nullcontext)
    with pytest.raises(RecipeError, match="differ from the student's by up to"):
        shipped(made, tmp_path / "two")


def test_the_folder_of_a_student_has_a_pipeline_that_samples_as_it_does(places, tmp_path):
    made = taught(student(places["texts"], surgery=surgeries(), steps=4, solver="renoise"))
    sampler = save_pipeline(made.model, tmp_path)
    words, given = {"prompt": ["a", "b"]}, made.model.understood(["a", "b"])
    torch.manual_seed(0)
    theirs = to_diffusers.pictures(tmp_path, sampler, words, to_diffusers._start(made.model))
    torch.testing.assert_close(theirs, to_diffusers.expected(made.model, given, True), rtol=0, atol=1e-4)
    text = (tmp_path / "README.md").read_text()
    assert 'pipe("a prompt", num_inference_steps=4, guidance_scale=1)' in text
    assert "another choice needs the student's folder" in text
    made.model.base = PointDenoiser(width=8)
    save_pipeline(made.model, tmp_path)
    assert "begins its samples with its base model" in (tmp_path / "README.md").read_text()


def test_times_between_the_steps_are_said_and_measured(places, tmp_path):
    facts = shipped(student(places["texts"], steps=3, solver="renoise"), tmp_path / "one")
    assert "timesteps=[999, 666, 332]" in facts["usage"]
    assert "665.67" in facts["told"][0]
    assert facts["check"]["largest_error"] < 0.05
    facts = shipped(student(places["plain"], steps=3, solver="renoise"), tmp_path / "two")
    assert "num_inference_steps=3" in facts["usage"]
    assert "665.67" in facts["told"][0]


@pytest.mark.parametrize(
    ("place", "sampling", "words"),
    [
        ("plain", {"steps": 4, "solver": "heun"}, "Heun's method"),
        ("plain", {"steps": 4, "eta": 1.0}, "takes no eta"),
        ("plain", {"steps": 4, "guidance": 2.0}, "cannot be guided by 2"),
        ("texts", {"steps": 4, "guidance": 0.5}, "cannot be guided by 0.5"),
        ("classes", {"steps": 4, "guidance": 2.0}, "which is 5 here"),
        ("shifted", {"steps": 4}, "1000, 900, 750, 500"),
        ("flow", {"steps": 4, "start": 0.8}, "800, 600, 400, 200"),
        ("karras", {"steps": 4, "solver": "renoise"}, "samples as renoise does"),
        ("karras", {"steps": 4}, "does not scale"),
        ("labelled", {"steps": 1}, "gives no class to a UNet2DModel"),
    ],
)
def test_sampling_that_no_plain_call_can_do_is_refused(places, tmp_path, place, sampling, words):
    with pytest.raises(RecipeError, match=words):
        shipped(student(places[place], **sampling), tmp_path)


def test_students_that_no_pipeline_holds_are_refused(places):
    with pytest.raises(RecipeError, match="no network of a pipeline"):
        to_diffusers.check(Student(PointDenoiser(width=8), view="x"))
    alone = places["classes"]
    bare = Student(alone / "transformer", args={"scheduler": str(alone / "scheduler")})
    with pytest.raises(RecipeError, match="no pipeline around a DiTTransformer2DModel"):
        to_diffusers.check(bare)
    begun = student(places["texts"])
    begun.model.base = PointDenoiser(width=8)
    with pytest.raises(RecipeError, match="take turns"):
        to_diffusers.check(begun)


@pytest.mark.parametrize(
    "plan",
    [
        {"method": "diversity"},
        {"stages": [{"name": "few", "method": "dmd2"}, {"name": "again", "method": "diversity"}]},
    ],
)
def test_a_recipe_of_which_no_pipeline_can_come_is_refused_when_it_is_made(plan):
    keys = {"task": "generation", "student": "limbeck.models.toy:PointDenoiser", "export": "diffusers"} | plan
    with pytest.raises(RecipeError, match="export diffusers and method diversity do not go together: .* take turns"):
        Recipe.of(keys)
    assert Recipe.of(keys | {"export": "safetensors"}).export == ["safetensors"]
    assert Recipe.of(keys | {"method": "dmd2", "stages": None}).export == ["diffusers"]


def test_a_network_by_itself_ships_by_itself_and_is_read_back(places, tmp_path):
    from limbeck.models import adapters

    place = places["classes"]
    bare = Student(place / "transformer", args={"scheduler": str(place / "scheduler"), "null_class": None})
    torch.nn.init.normal_(bare.model.network.proj_out_2.weight)
    sample_with(bare.model, steps=2, solver="ddim")
    adapters.keep(bare.model, tmp_path, None)
    assert "DiTTransformer2DModel.from_pretrained" in (tmp_path / "pipeline" / "README.md").read_text()
    again = adapters.rebuilt(tmp_path, {}, "student").model
    assert again.noise == bare.model.noise
    for a, b in zip(again.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(a, b)


def rows():
    g = torch.Generator().manual_seed(0)
    columns = {"image": torch.rand(5, 3, 8, 8, generator=g), "label": torch.arange(5)}
    return Rows(
        Data({"test": TensorSplit(columns, 0)}, {"image": "image", "label": ""}, source="five"),
        Task("generation", target="image"),
    )


@pytest.mark.parametrize("start", [1.0, 0.8])
def test_an_export_is_a_student_again_and_samples_as_before(places, tmp_path, start):
    made = student(places["classes"], steps=4, solver="ddim", start=start)
    made.view = None
    written = exporting.export("diffusers", tmp_path, student=made, rows=rows())
    assert written == tmp_path / "diffusers"
    facts = opened.facts_of(written)
    assert facts["bytes"] > 10_000
    assert "2 pictures from equal latents" in exporting.sentences(facts)[0]
    card = (written / "README.md").read_text()
    assert 'DiffusionPipeline.from_pretrained("diffusers")' in card
    assert "pipe([3], num_inference_steps=4, guidance_scale=1)" in card
    again = opened.student(written)
    batch = rows().batch("test", 3)
    expected = made(batch)["generated"]
    torch.testing.assert_close(again(batch)["generated"], expected, rtol=0, atol=1e-4)


def test_schedulers_of_pipelines_that_take_sigmas_and_timesteps():
    """Calls of pipelines that are too large to be made here, by what their call takes."""
    from limbeck.diffusion.network import Sampling
    from limbeck.diffusion.noise import Flow

    found = schedulers.sampler_for(
        Flow(shift=3.0, scale=1000), Sampling(4, "renoise"), flow(3.0), {"sigmas", "guidance_scale"}
    )
    assert found.call == {"sigmas": [1.0, 0.75, 0.5, 0.25], "guidance_scale": 1}
    found.scheduler.set_timesteps(sigmas=found.call["sigmas"])
    grid = Flow(shift=3.0).grid(4)
    torch.testing.assert_close(found.scheduler.sigmas, grid)
    assert found.scheduler.config.stochastic_sampling
    edm = diffusers.EDMEulerScheduler()
    noise = schedulers.noise_of(edm)[0]
    found = schedulers.sampler_for(noise, Sampling(5, "ddim"), edm, {"latents"})
    assert found.able
    found.scheduler.set_timesteps(5)
    torch.testing.assert_close(found.scheduler.sigmas, noise.grid(5), rtol=1e-4, atol=1e-5)
