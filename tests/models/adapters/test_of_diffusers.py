"""Pipelines of diffusers: what their schedulers mean, the same numbers as their own samplers, conditions, latents, LoRA, shipping, refusals."""

import json

import pipelines
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from limbeck.actors import Student, Teacher  # noqa: E402
from limbeck.diffusion.denoiser import Denoiser, with_lora  # noqa: E402
from limbeck.diffusion.network import sample_with  # noqa: E402
from limbeck.diffusion.noise import VE, VP, Flow  # noqa: E402
from limbeck.errors import RecipeError  # noqa: E402
from limbeck.models.adapters.pipeline_folder import save_pipeline  # noqa: E402
from limbeck.models.adapters.schedulers import noise_of  # noqa: E402


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "plain": pipelines.pixels(root / "plain"),
        "labelled": pipelines.pixels(root / "labelled", classes=5, prediction="v_prediction"),
        "classes": pipelines.classes(root / "classes"),
        "texts": pipelines.texts(root / "texts"),
    }


def test_what_schedulers_mean():
    known = [
        (diffusers.DDPMScheduler(), VP(), "epsilon"),
        (diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), VP(zero_terminal=True), "v"),
        (diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), VP(betas="scaled", start=0.00085, end=0.012), "epsilon"),
        (diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"), VP(betas="cosine"), "x0"),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), Flow(shift=3.0, scale=1000), "velocity"),
        (diffusers.EDMEulerScheduler(sigma_max=50), VE(most=50), "edm"),
    ]  # fmt: skip
    for scheduler, noise, head in known:
        assert noise_of(scheduler)[:2] == (noise, head)
    trained = diffusers.DDPMScheduler(trained_betas=[0.1, 0.2, 0.3])
    noise = noise_of(trained)[0]
    torch.testing.assert_close(noise.alpha(torch.tensor([1.0, 2, 3])) ** 2, trained.alphas_cumprod)


def test_what_does_not_go_together_is_refused(places):
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    flow.register_to_config(prediction_type="v_prediction")
    for scheduler in (flow, diffusers.EDMEulerScheduler(prediction_type="v_prediction")):
        with pytest.raises(RecipeError, match="v_prediction"):
            noise_of(scheduler)
    with pytest.raises(RecipeError, match="contradicts"):
        Teacher(places["plain"], args={"head": "v"})
    with pytest.raises(RecipeError, match="checkpointing"):
        Teacher(places["plain"], args={"checkpoint": True})
    with pytest.raises(RecipeError, match="0 to 4"):
        Teacher(places["labelled"], args={"null_class": 5})


def test_one_value_of_the_network_is_the_networks_own(places):
    student = Student(places["plain"])
    unet = diffusers.UNet2DModel.from_pretrained(places["plain"], subfolder="unet")
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 500, 1000])
    expected = unet(x, t - 1).sample
    torch.testing.assert_close(Denoiser(student)(x, t).value, expected)
    assert {p.data_ptr() for p in student.model.parameters()}.isdisjoint({p.data_ptr() for p in unet.parameters()})


def test_samples_are_those_of_their_own_pipeline(places):
    """DDIM with trailing steps, from the same noise: the same pictures."""
    student = Student(places["plain"])
    student.look_at(["image", "id"])
    sample_with(student.model, steps=5)
    ids = torch.arange(2)
    ours = student({"image": torch.zeros(2, 1, 8, 8), "id": ids})["generated"]
    z = student.model.noise_for(None, ids)
    unet = student.model.network
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(5)
    x = z * student.model.noise.sigma(torch.tensor(1000.0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, (x / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_pictures_become_what_the_network_wants_and_back(places):
    plain = Teacher(places["plain"]).model
    assert torch.equal(plain.encoded(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0, 1]))
    assert torch.equal(plain.decoded(plain.encoded(torch.tensor([0.25, 1.0]))), torch.tensor([0.25, 1.0]))
    signed = Teacher(places["plain"], args={"pixels": "signed"}).model
    assert torch.equal(signed.encoded(torch.tensor([-1.0])), torch.tensor([-1.0]))


def test_latents_are_those_of_the_autoencoder(places):
    model = Teacher(places["classes"]).model
    vae = diffusers.AutoencoderKL.from_pretrained(places["classes"], subfolder="vae")
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = vae.encode(2 * x - 1).latent_dist.mode() * vae.config.scaling_factor
        found = model.encoded(x)
        torch.testing.assert_close(found, expected)
        back = vae.decode(found / vae.config.scaling_factor).sample
        torch.testing.assert_close(model.decoded(found), (back / 2 + 0.5).clamp(0, 1))
    assert not any("vae" in name for name, _ in model.named_parameters())
    latents = Teacher(places["classes"], args={"pixels": "latents"}).model
    assert latents.encoded(found) is found


def test_classes_and_the_class_of_nothing(places):
    teacher = Teacher(places["classes"])
    teacher.look_at(["image", "label", "id"])
    d = Denoiser(teacher)
    x, given = d.shown({"image": torch.rand(2, 3, 8, 8), "label": torch.tensor([1, 4]), "id": torch.arange(2)})
    t = torch.tensor([30.0, 700.0])
    assert x.shape == (2, 4, 4, 4)
    net = teacher.model.network
    with torch.no_grad():
        c, u = (
            net(x, timestep=t - 1, class_labels=k).sample[:, :4] for k in (torch.tensor([1, 4]), torch.tensor([5, 5]))
        )
    torch.testing.assert_close(d(x, t, given).value, c)  # without the learnt variance
    torch.testing.assert_close(d(x, t, given, guidance=4.0).value, u + 4 * (c - u), rtol=1e-3, atol=1e-5)
    labelled = Teacher(places["labelled"])
    assert (labelled.model.conditions, labelled.model.guidable) == ("class", False)
    assert Teacher(places["labelled"], args={"null_class": 4}).model.guidable


def test_texts_are_encoded_by_their_own_encoder_and_nothing_is_an_empty_text(places):
    teacher = Teacher(places["texts"])
    teacher.look_at(["image", "prompt", "id"])
    d = Denoiser(teacher)
    x, given = d.shown({"image": torch.rand(2, 3, 8, 8), "prompt": ["a cat", "dog"], "id": torch.arange(2)})
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(places["texts"], safety_checker=None)
    encoded, nothing = pipeline.encode_prompt(["a cat", "dog"], "cpu", 1, True, negative_prompt=["", ""])
    torch.testing.assert_close(given["condition"], encoded)
    t = torch.tensor([30.0, 700.0])
    with torch.no_grad():
        c, u = (pipeline.unet(x, t - 1, encoder_hidden_states=e).sample for e in (encoded, nothing))
    torch.testing.assert_close(d(x, t, given, guidance=7.5).value, u + 7.5 * (c - u), rtol=1e-3, atol=1e-4)
    made = teacher({"image": torch.rand(2, 3, 8, 8), "prompt": ["a", "b"], "id": torch.arange(2)})["generated"]
    assert made.shape == (2, 3, 8, 8)
    steered = d(x, t, given, guidance=2.0, instead=teacher.model.understood(["dog", "dog"])).value
    torch.testing.assert_close(steered[1], c[1], rtol=1e-4, atol=1e-5)


def test_encoders_are_loaded_once_and_never_copied_or_trained(places):
    import copy

    one, two = Teacher(places["texts"]), Student(places["texts"])
    assert one.model.companions is two.model.companions
    assert copy.deepcopy(one.model).companions is one.model.companions
    assert not any(p.requires_grad for p in one.model.companions.part("text_encoder").parameters())
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b


def test_low_rank_critics_stand_beside_attention(places):
    pytest.importorskip("peft")
    teacher = Teacher(places["texts"])
    teacher.look_at(["image", "prompt", "id"])
    critic, own = with_lora(teacher, rank=2)
    d, x, t = Denoiser(teacher), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 900.0])
    given = d.model.understood(["a", "b"])
    assert torch.equal(Denoiser(critic)(x, t, given).value, d(x, t, given).value)
    assert all("lora" in n for n, p in critic.model.named_parameters() if any(p is q for q in own))
    assert any("to_q" in n for n, p in critic.model.named_parameters() if any(p is q for q in own))
    assert sum(p.numel() for p in own) < 0.2 * sum(p.numel() for p in teacher.model.parameters())


def test_a_smaller_network_of_the_same_make(places):
    address = "limbeck.models.adapters.of_diffusers:build"
    student = Student(address, args={"config": str(places["plain"]), "block_out_channels": [8, 8]})
    assert student.parameters_count() < Student(places["plain"]).parameters_count()
    assert student.model.noise == VP()


def test_a_student_is_a_pipeline_that_opens_without_us(places, tmp_path):
    student = Student(places["plain"])
    with torch.no_grad():
        for p in student.model.parameters():
            p.add_(0.01)
    sample_with(student.model, steps=1, solver="renoise")
    save_pipeline(student.model, tmp_path / "out")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(theirs.scheduler, diffusers.DDIMScheduler)
    ids = torch.arange(1)
    student.look_at(["image", "id"])
    ours = student({"image": torch.zeros(1, 1, 8, 8), "id": ids})["generated"]
    z = student.model.noise_for(None, ids)
    theirs.scheduler.set_timesteps(1)
    t = theirs.scheduler.timesteps[0]
    with torch.no_grad():
        x = theirs.scheduler.step(theirs.unet(z, t).sample, t, z).prev_sample
    torch.testing.assert_close((x / 2 + 0.5).clamp(0, 1), ours, rtol=1e-2, atol=1e-2)
    sample_with(student.model, steps=4, solver="renoise")
    save_pipeline(student.model, tmp_path / "few")
    assert "LCM" in json.loads((tmp_path / "few" / "model_index.json").read_text())["scheduler"][1]


def test_the_folder_of_a_student_is_read_back_whole(places, tmp_path):
    from limbeck.models import adapters
    from limbeck.sources import save_weights

    student = Student(places["labelled"], args={"null_class": 4})
    with torch.no_grad():
        for p in student.model.parameters():
            p.mul_(1.1)
    save_weights(student.model, tmp_path / "model.safetensors")
    adapters.keep(student.model, tmp_path, places["labelled"])
    (tmp_path / "limbeck.json").write_text(json.dumps({"model": "gone", "args": {"null_class": 4}, "surgery": []}))
    again = Student(tmp_path)
    assert again.model.null_class == 4
    for a, b in zip(again.model.parameters(), student.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_network_by_itself_needs_a_scheduler(places):
    alone = places["plain"] / "unet"
    with pytest.raises(RecipeError, match="args.scheduler=FOLDER"):
        Student(alone)
    student = Student(alone, args={"scheduler": str(places["plain"] / "scheduler")})
    whole = Student(places["plain"])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5.0, 900])
    assert torch.equal(Denoiser(student)(x, t).value, Denoiser(whole)(x, t).value)
    with pytest.raises(RecipeError, match="leave it out"):
        Student(places["plain"], args={"scheduler": str(places["plain"] / "scheduler")})


def test_a_name_that_lies_in_the_cache_needs_no_network(monkeypatch):
    from limbeck.models import adapters

    hub = pytest.importorskip("huggingface_hub")
    there = {"model_index.json"}
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: file if file in there else None)
    monkeypatch.setattr(hub, "file_exists", lambda *a: pytest.fail("nobody is asked"))
    assert adapters.family_of_name("somebody/pipeline") == "of_diffusers"
    there = {"config.json"}
    assert adapters.family_of_name("somebody/model") == "of_transformers"
    there = set()
    monkeypatch.setattr(hub, "file_exists", lambda *a: True)
    assert adapters.family_of_name("somebody/new") == "of_diffusers"

    def no_network(*a):
        raise ConnectionError

    monkeypatch.setattr(hub, "file_exists", no_network)
    assert adapters.family_of_name("somebody/new") == "of_transformers"


def test_data_of_another_range_or_scale_are_refused(places):
    plain = Student(places["plain"]).model
    plain.refuse(torch.rand(4, 1, 8, 8), "student")
    with pytest.raises(RecipeError, match="student.args.pixels=signed"):
        plain.refuse(2 * torch.rand(4, 1, 8, 8) - 1, "student")
    latents = Student(places["classes"], args={"pixels": "latents"}).model
    latents.refuse(torch.randn(8, 4, 4, 4), "student")
    with pytest.raises(RecipeError, match="scaling_factor, 0.18215"):
        latents.refuse(torch.randn(8, 4, 4, 4) / 0.18215, "student")
