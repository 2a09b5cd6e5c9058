"""The recipe of few steps, as a person types it, on a tiny Stable Diffusion saved on the spot, photos beside prompts, and a tiny CLIP."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy
import pytest
import torch

import limbeck
from limbeck.actors import Student

diffusers = pytest.importorskip("diffusers")
SPEC = importlib.util.spec_from_file_location(
    "tiny_diffusion_models", Path(__file__).parents[2] / "examples" / "tiny_diffusion_models.py"
)
assert SPEC is not None
assert SPEC.loader is not None
TINY = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TINY)
SHORT = ("train.steps=2", "train.batch_size=4")


ALONE = ("teacher=null", "method={use: denoising, sampling_steps: 1}")  # the quickest run that there is
SPLITS = {"train": 12, "validation": 2, "test": 3}


def photos(folder: Path) -> Path:
    """Photos beside prompts, in folders called like splits."""
    for name, count in SPLITS.items():
        TINY.photos(folder / name, count)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """`teacher`, `clip` and `photos`; nobody has learnt anything."""
    folder = tmp_path_factory.mktemp("few-step")
    photos(folder / "photos")
    tokens = TINY.tokenizer(folder / "tokenizer")
    TINY.pipeline(tokens).save_pretrained(folder / "teacher")
    TINY.save_clip(TINY.clip(tokens), tokens, folder / "clip")
    return folder


@pytest.fixture
def words(models, tmp_path, monkeypatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    return (f"teacher={models}/teacher", f"student={models}/teacher", f"data={models}/photos", *SHORT)


@pytest.fixture
def judges(models) -> tuple[str, ...]:
    """Where what looks at the pictures lies, and how many it sees; what takes time is left out."""
    return (
        "evaluate=[fid, clip-score]",
        f"evaluate.fid.classifier={models}/clip",
        "evaluate.fid.samples=5",
        f"evaluate.clip-score.model={models}/clip",
    )


@pytest.mark.parametrize("steps", [4, 1])
def test_three_words_give_a_pipeline_of_few_steps_that_opens_without_us(steps, words, judges, cli):
    code, out, err = cli("distill", "few-step", *words, *judges, f"method.sampling_steps={steps}", "--out", "run")
    assert code == 0, err
    assert "exported: run/export/diffusers Checked against PyTorch on 2 pictures from equal latents" in out + err
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "finished"
    assert any("is said to predict epsilon" in said for said in result["notices"])  # nobody has learnt anything
    for who, evaluations in (("student", steps), ("control", steps), ("teacher", 40)):
        figures = result[who]["figures"]
        assert figures["evaluations"] == evaluations
        assert {"frechet_CLIPModel", "clip_score", "sliced_wasserstein"} <= figures.keys()
        assert result[who]["judged"]["frechet_CLIPModel"]["generated"] == 5
    assert result["student"]["figures"]["clip_score"] >= 0

    student, folder = Student("run"), Path("run/export/diffusers")
    assert student.model.sampling.steps == steps
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts, g = ["a red disc", "a blue cross"], torch.Generator().manual_seed(1)
    with torch.no_grad():
        given = student.model.understood(prompts)
        made = student.model.generate(z, given, fresh=lambda step: torch.randn(z.shape, generator=g))
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    x = z * float(student.model.noise.sigma(torch.tensor(1000.0)))
    images = pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=1,
        latents=x,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images
    expected = student.model.decoded(made)
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), expected, rtol=0, atol=1e-4)
    assert f'pipe("a prompt", num_inference_steps={steps}, guidance_scale=1)' in (folder / "README.md").read_text()


def test_the_file_is_the_one_of_the_manual():
    recipe = limbeck.Recipe.load("few-step", "teacher=a/b", "student=a/b", "data=photos", "method.sampling_steps=1")
    assert recipe.method["sampling_steps"] == 1
    known = {"use": "dmd2", "critic_steps": 5, "guidance": 1.75, "gan_weight": 1e-3}
    assert known.items() <= recipe.method.items()
    assert (recipe.train.ema, recipe.control, recipe.export) == (0.999, "start", ["diffusers"])
    assert [choice["use"] for choice in recipe.evaluate_choices()] == ["fid", "clip-score", "speed"]
    assert (recipe.limit.hours, recipe.limit.memory_gb) == (48, 140)


def refused(cli, *words) -> str:
    """What is said of words that cannot be run; nothing is left."""
    code, _, err = cli("distill", "few-step", *words, "--out", "no")
    assert code == 2, err
    assert not Path("no").exists()
    return " ".join(err.split())


def test_judges_that_are_not_to_be_had_are_said_before_anything_starts(words, judges, models, cli, monkeypatch):
    import transformers

    def no_network(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    told = refused(cli, *words)
    assert "no route to host" in told
    assert "evaluate.fid.classifier=FILE.pth" in told
    usual = transformers.AutoModel.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModel,
        "from_pretrained",
        lambda place, *a, **o: no_network() if place == "openai/clip-vit-base-patch32" else usual(place, *a, **o),
    )
    told = refused(cli, *words, *judges[:3])
    assert "evaluate.clip-score.model=FOLDER" in told
    assert "Did you mean 'samples'" in refused(cli, *words, "evaluate.fid.sample=3")


def changed(models, folder, **facts):
    """The pipeline with another scheduler_config.json."""
    place = Path(shutil.copytree(models / "teacher", folder))
    file = place / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return place


def test_a_scheduler_that_contradicts_the_model_is_refused(words, models, tmp_path, cli):
    told = refused(cli, *words, "evaluate=quality", "teacher.args.head=v")
    assert "args.head is v" in told
    assert "prediction_type epsilon) says epsilon" in told
    assert "scheduler_config.json" in told
    place = changed(models, tmp_path / "other", prediction_type="flow_prediction")
    told = refused(cli, f"teacher={place}", *words[1:], "evaluate=quality")
    assert "prediction_type 'flow_prediction', which does not go with variance-preserving noise" in told
    place = changed(
        models,
        tmp_path / "flow",
        _class_name="FlowMatchEulerDiscreteScheduler",
        prediction_type="v_prediction",
        shift=1.0,
    )
    index = json.loads((place / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (place / "model_index.json").write_text(json.dumps(index))
    told = refused(cli, f"teacher={place}", *words[1:], "evaluate=quality")
    assert "is one of flows, whose networks predict velocities, and its prediction_type is 'v_prediction'" in told


def latents(folder: Path, scale: float) -> Path:
    """Latents beside prompts."""
    draw = numpy.random.default_rng(0)
    for name, count in SPLITS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            numpy.save(folder / name / f"{i}.npy", (draw.standard_normal((4, 8, 8)) / scale).astype(numpy.float32))
            (folder / name / f"{i}.txt").write_text("a red disc")
    return folder


def test_latents_and_pictures_of_the_wrong_scale_are_refused(words, models, tmp_path, cli):
    place = Path(shutil.copytree(models / "teacher", tmp_path / "scaled"))
    file = place / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0.18215}))
    own = (f"teacher={place}", f"student={place}", *SHORT, "evaluate=quality", "export=[]", "control=none")
    own += ("data.columns={latent: array, prompt: text}", "teacher.args.pixels=latents", "student.args.pixels=latents")
    told = refused(cli, f"data={latents(tmp_path / 'raw', 0.18215)}", *own)
    assert "the latents have a standard deviation of 5." in told
    assert "scaling_factor, 0.18215" in told
    code, _, err = cli("distill", "few-step", f"data={latents(tmp_path / 'right', 1.0)}", *own, *ALONE, "--out", "run")
    assert code == 0, err
    told = refused(cli, *words, "evaluate=quality", "student.args.pixels=latent")
    assert "Did you mean 'latents'" in told


def test_data_that_do_not_go_with_the_recipe_are_refused_with_what_to_say(words, judges, models, tmp_path, cli):
    folder = photos(tmp_path / "many-sizes")
    from PIL import Image

    Image.new("RGB", (20, 30)).save(folder / "train" / "0003.png")
    told = refused(cli, *words[:2], f"data={folder}", *SHORT, *judges)
    assert "is float32 [3, 30, 20], but" in told
    assert "size (and channels) in its column makes all alike" in told
    mended = (
        "data.columns.image.size=20",
        "data.columns.image.fit=crop",
        "control=none",
        "export=[]",
        "evaluate=quality",
    )
    code, _, err = cli("distill", "few-step", *words[:2], f"data={folder}", *SHORT, *mended, *ALONE, "--out", "run")
    assert code == 0, err


def test_an_export_that_nothing_can_come_of_is_refused(words, judges, cli):
    told = refused(cli, *words, *judges, "method=diversity")
    assert "export diffusers and method diversity do not go together" in told
