"""Further families of diffusers: the same predictions, samples and empty prompts as their own pipelines; taught, shipped, opened.

How times compare. Times of variance-preserving noise are one more than theirs (0 is data here, their step 0 our 1), times of flows their
sigmas. Our grid is even in shares with 0 at the end: their `trailing` spacing for VP; for flows the shares 1, 3/4, 2/4, 1/4, which
FLUX hands its scheduler, and which the shift (fixed, or of the number of tokens) moves as it moves ours: at(u) = s u / (1 + (s - 1) u). Left
alone, FlowMatchEulerDiscreteScheduler (Stable Diffusion 3) goes evenly from 1 to sigma(1 / 1000) and shifts that, and schedulers with
`leading` spacing begin below the top. There the grid is theirs; told `sigmas`, Stable Diffusion 3 samples on ours.

How guidance compares. The pipeline of Qwen-Image gives the guided answer the length of the unguided one, square by square, before it steps. Guidance is
the same for all families here, without that; where samples are compared the answer is lengthened likewise. That of Lumina 2 does so row by row unless it
is told `cfg_normalization=False`, as the call says that ships.
"""

import functools
import inspect
import json
import math
from dataclasses import replace

import pipelines
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import transformer_pipelines as further  # noqa: E402

import limbeck  # noqa: E402
from limbeck.actors import Student, Teacher  # noqa: E402
from limbeck.diffusion import solvers  # noqa: E402
from limbeck.diffusion.denoiser import Denoiser, copied  # noqa: E402
from limbeck.diffusion.network import Sampling, sample_with  # noqa: E402
from limbeck.diffusion.noise import VE, VP, Flow  # noqa: E402
from limbeck.errors import RecipeError  # noqa: E402
from limbeck.models.adapters.calls import call_of  # noqa: E402
from limbeck.models.adapters.packed_calls import packed, unpacked  # noqa: E402
from limbeck.models.adapters.schedulers import noise_of  # noqa: E402
from limbeck.shipping import to_diffusers  # noqa: E402
from limbeck.shipping.package import Package  # noqa: E402

PROMPTS = ["a cat", "dog"]
SIDE = {"height": 16, "width": 16}
CAPTION = SIDE | {"use_resolution_binning": False, "clean_caption": False}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
INSTRUCTION = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
KINDS = {
    "large": (further.large, {}, SIDE),
    "karras": (further.karras, {}, SIDE),
    "captions": (further.captions, {}, CAPTION),
    "alpha": (lambda folder: further.captions(folder, "PixArtAlphaPipeline"), {}, CAPTION),
    "joint": (further.joint, {}, SIDE),
    "packed": (further.packed, {"size": 8}, SIDE),
    "sana": (further.sana, {}, {"height": 32, "width": 32, "use_resolution_binning": False}),
    "qwen": (further.qwen_image, {"size": 8}, SIDE),
    "aura": (further.aura_flow, {}, SIDE),
    "lumina": (further.lumina, {}, {"height": 64, "width": 64, "cfg_normalization": False}),
    "v": (further.velocities, {}, SIDE),
    "zero": (lambda folder: further.velocities(folder, **ZERO), {}, SIDE),
}
EACH = pytest.mark.parametrize("kind", KINDS)


class Known:
    """A pipeline as its library opens it, and as a teacher."""

    def __init__(self, kind, root, **changes):
        make, args, self.words = KINDS[kind]
        self.kind, self.args, self.place = kind, args, make(root / kind, **changes)
        self.pipeline = diffusers.DiffusionPipeline.from_pretrained(self.place, safety_checker=None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.network = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        self.teacher = Teacher(self.place, args=args)
        self.model = self.teacher.model
        torch.manual_seed(1)
        self.z = torch.randn(2, 4, 8, 8)

    def told(self):
        """The words that its network hears of the prompts, and of nothing, beside sample and time."""
        p = self.pipeline
        if self.kind == "packed":
            squares = p._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
            both = (p.encode_prompt(prompt=texts, prompt_2=None, device="cpu") for texts in (PROMPTS, ["", ""]))
            return [
                {"encoder_hidden_states": e, "pooled_projections": v, "txt_ids": ids, "img_ids": squares, "guidance": torch.full((2,), 3.5)}
                for e, v, ids in both
            ]  # fmt: skip
        if self.kind == "qwen":
            both = (p.encode_prompt(texts, device="cpu") for texts in (PROMPTS, ["", ""]))
            shapes = {"img_shapes": [[(1, 4, 4)]] * 2}
            return [{"encoder_hidden_states": e, "encoder_hidden_states_mask": m} | shapes for e, m in both]
        more = {
            "large": {"prompt_2": None},
            "karras": {"prompt_2": None},
            "joint": {"prompt_2": None, "prompt_3": None},
            "sana": {"complex_human_instruction": INSTRUCTION},
        }.get(self.kind, {})
        captions = self.kind in ("captions", "alpha")
        more |= {} if captions else {"num_images_per_prompt": 1}
        found = p.encode_prompt(prompt=PROMPTS, device="cpu", do_classifier_free_guidance=True, **more)
        if captions:
            added = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
            e, m, n, k = found
            return [{"encoder_hidden_states": a, "encoder_attention_mask": b} | added for a, b in ((e, m), (n, k))]
        if self.kind in ("v", "zero"):
            return [{"encoder_hidden_states": e} for e in found]
        if self.kind == "aura":
            return [{"encoder_hidden_states": e} for e in found[::2]]
        if self.kind in ("sana", "lumina"):
            e, m, n, k = found
            return [{"encoder_hidden_states": a, "encoder_attention_mask": b} for a, b in ((e, m), (n, k))]
        e, n, pooled, none = found
        if self.kind == "joint":
            return [{"encoder_hidden_states": a, "pooled_projections": b} for a, b in ((e, pooled), (n, none))]
        ids = p._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 8).repeat(2, 1)
        return [
            {"encoder_hidden_states": a, "added_cond_kwargs": {"text_embeds": b, "time_ids": ids}}
            for a, b in ((e, pooled), (n, none))
        ]

    def said(self, x, t, words):
        """What its own network says of x at our times t."""
        if self.kind in ("packed", "qwen"):
            squares = self.pipeline._pack_latents(x, 2, 4, 8, 8)
            return self.unpacked(self.network(hidden_states=squares, timestep=t, return_dict=False, **words)[0])
        if self.kind == "aura":
            return self.network(x, timestep=t, return_dict=False, **words)[0]
        if self.kind == "lumina":
            return -self.network(x, timestep=1 - t, return_dict=False, **words)[0]
        if self.kind == "karras":
            seen = x / (t**2 + 0.25).sqrt()[:, None, None, None]
            return self.network(seen, timestep=t.log() / 4, return_dict=False, **words)[0]
        if self.kind in ("joint", "sana"):
            return self.network(hidden_states=x, timestep=1000 * t, return_dict=False, **words)[0]
        return self.network(x, timestep=t - 1, return_dict=False, **words)[0][:, :4]

    def sampled(self, w, z=None, output_type="latent", **how):
        """Four steps of the pipeline itself from these latents, guided by w."""
        guided = {"guidance_scale": w}
        z = self.z if z is None else z
        if self.kind in ("packed", "qwen"):
            guided = {"true_cfg_scale": w, "negative_prompt": ["", ""]} if w > 1 else {"true_cfg_scale": 1.0}
            guided |= {"guidance_scale": 3.5} if self.kind == "packed" else {}
            z = self.pipeline._pack_latents(z, 2, 4, 8, 8)
        how = how or {"num_inference_steps": 4}
        x = self.pipeline(PROMPTS, latents=z, output_type=output_type, **self.words, **guided, **how).images
        packed = self.kind in ("packed", "qwen") and output_type == "latent"
        return self.unpacked(x) if packed else x

    def unpacked(self, squares):
        """Squares of latents as latents; those of films are of one frame."""
        x = self.pipeline._unpack_latents(squares, 16, 16, 2)
        return x[:, :, 0] if self.kind == "qwen" else x


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("further")


@pytest.fixture(scope="module")
def known(root):
    return functools.cache(lambda kind: Known(kind, root))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


def times_of(scheduler, noise):
    """The times of a scheduler that has sampled, as ours."""
    if isinstance(noise, Flow | VE):
        return scheduler.sigmas
    last = 0.0 if scheduler.config.get("set_alpha_to_one", True) else 1.0
    return torch.cat([scheduler.timesteps + 1.0, torch.tensor([last])])


@EACH
@torch.no_grad()
def test_a_prediction_is_the_networks_own_and_so_is_that_of_nothing(known, kind):
    k = known(kind)
    t = {Flow: torch.tensor([0.3, 0.8]), VE: torch.tensor([0.2, 40.0])}.get(
        type(k.model.noise), torch.tensor([30.0, 700])
    )
    asked, given = Denoiser(k.teacher), k.model.understood(PROMPTS)
    told, nothing = (k.said(k.z, t, words) for words in k.told())
    torch.testing.assert_close(asked(k.z, t, given).value, told, rtol=1e-5, atol=1e-5)
    first = torch.tensor([True, False])
    dropped = asked(k.z, t, given, drop=first).value
    torch.testing.assert_close(dropped, torch.where(first[:, None, None, None], nothing, told), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(told[0], nothing[0], rtol=1e-3, atol=1e-4)  # the prompt is heard
    guided = asked(k.z, t, given, guidance=torch.tensor([1.0, 4.0])).value
    torch.testing.assert_close(guided[0], told[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided[1], nothing[1] + 4 * (told[1] - nothing[1]), rtol=1e-4, atol=1e-4)


@EACH
@torch.no_grad()
def test_a_discriminator_would_stand_on_the_sample_and_not_on_the_text(known, kind):
    k = known(kind)
    asked = Denoiser(copied(k.teacher))
    asked.actor.tap("middle", asked.model.middle)
    t = torch.full((2,), 0.5 * k.model.noise.last)
    seen = asked.feature("middle", k.z, t, k.model.understood(PROMPTS)).shape
    usual = (2, 16, 16) if k.model.call.patch == 2 else (2, 8, 8, 8)
    assert seen == {"joint": (2, 16, 8), "sana": (2, 64, 16)}.get(kind, usual)


@EACH
@torch.no_grad()
def test_pictures_are_decoded_as_theirs_and_encoded_back(known, kind):
    k, steps = known(kind), {"num_inference_steps": 2}
    theirs = k.sampled(1.0, output_type="pt", **steps)
    torch.testing.assert_close(k.model.decoded(k.sampled(1.0, **steps)), theirs, rtol=1e-4, atol=1e-4)
    vae = k.pipeline.vae
    mean, std = (vae.config.get(f"latents_{what}") or [other] * 4 for what, other in (("mean", 0.0), ("std", 1.0)))
    film = kind == "qwen"
    found = vae.encode((2 * theirs - 1)[:, :, None] if film else 2 * theirs - 1)
    x = found.latent if kind == "sana" else found.latent_dist.mode()
    x = (x[:, :, 0] if film else x) - (vae.config.get("shift_factor") or 0.0)
    channels = torch.tensor([mean, std]).reshape(2, 4, 1, 1)
    latents = (x - channels[0]) / channels[1] * vae.config.get("scaling_factor", 1.0)
    torch.testing.assert_close(k.model.encoded(theirs), latents, rtol=1e-4, atol=1e-4)


def as_long(guided, said):
    """A guided answer of the length of the unguided one, square by square."""
    tokens, usual = packed(guided.value), packed(said.value)
    tokens = tokens * usual.norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)
    return replace(guided, value=unpacked(tokens, said.value))


@EACH
@pytest.mark.parametrize("w", [1.0, 3.0])
@torch.no_grad()
def test_samples_are_the_pipelines_own(known, kind, w):
    """Euler's steps (DDIM is that of VP) at the scheduler's own times; on our grid without further ado where that is theirs too."""
    k = known(kind)
    theirs = k.sampled(w)
    noise, asked, given = k.model.noise, Denoiser(k.teacher), k.model.understood(PROMPTS)
    times = times_of(k.pipeline.scheduler, noise)
    begun = k.z * (noise.most if isinstance(noise, VE) else 1.0)  # theirs begins with sqrt(sigma^2 + 1) for that sigma

    def said(x, t):
        found = asked(x, t, given, guidance=w)
        return as_long(found, asked(x, t, given)) if kind == "qwen" and w > 1 else found

    close(solvers.sample(said, begun, noise, times), theirs)
    alone = k.model.generate(k.z, given, sampling=Sampling(steps=4, guidance=w))
    if kind in ("karras", "captions", "alpha", "packed", "lumina", "zero"):
        torch.testing.assert_close(noise.grid(4), times, rtol=1e-6, atol=1e-6)
        close(alone, theirs)
    else:
        assert (noise.grid(4) - times).abs().max() > 1e-3
    if kind in ("joint", "sana", "aura"):  # told our times
        close(alone, k.sampled(w, sigmas=[1.0, 0.75, 0.5, 0.25]))


@EACH
def test_photos_are_brought_to_the_size_that_is_denoised(known, kind):
    k = known(kind)
    found = k.model.view_for(["image", "prompt", "id"])
    assert found["named"]["condition"] == "prompt"
    (prepared,) = found["transforms"]
    side = k.words["height"]
    assert (prepared["use"], prepared["size"]) == ("standardise", [side, side])
    with torch.no_grad():
        assert k.model.encoded(torch.rand(1, 3, side, side)).shape == (1, *k.model.shape)


def test_what_their_schedulers_mean(known):
    assert known("joint").model.noise == known("sana").model.noise == Flow(shift=3, scale=1000)
    assert known("lumina").model.noise == Flow(shift=6, scale=1000)
    assert known("aura").model.noise == Flow(shift=1.73, scale=1000)
    mu = 0.5 + (0.9 - 0.5) * (16 - 256) / (8192 - 256)
    assert known("qwen").model.noise.shift == pytest.approx(math.exp(mu))
    assert known("v").model.noise == VP(betas="scaled", start=0.00085, end=0.012)
    assert known("zero").model.noise == VP(betas="scaled", start=0.00085, end=0.012, zero_terminal=True)
    assert known("karras").model.noise == VE()
    heads = {
        "epsilon": ("large", "captions", "alpha"),
        "edm": ("karras",),
        "velocity": ("joint", "packed", "sana", "qwen", "aura", "lumina"),
        "v": ("v", "zero"),
    }
    assert all(known(kind).model.head == head for head, kinds in heads.items() for kind in kinds)
    assert all(known(kind).model.guidable and known(kind).model.shape == (4, 8, 8) for kind in KINDS)
    alphas = known("zero").pipeline.scheduler.alphas_cumprod
    noise = known("zero").model.noise
    torch.testing.assert_close(noise.alpha(torch.arange(1.0, 1001)) ** 2, alphas, rtol=1e-4, atol=1e-7)
    assert noise.alpha(torch.tensor(1000.0)) == alphas[-1] == 0


@pytest.mark.parametrize("form", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [16, 256, 4096])
def test_a_dynamic_shift_is_that_of_so_many_tokens(form, tokens):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, time_shift_type=form)
    noise = noise_of(scheduler, tokens)[0]
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(tokens))
    torch.testing.assert_close(noise.grid(4), scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_times_that_run_from_noise_to_data_are_refused():
    with pytest.raises(RecipeError, match="invert_sigmas"):
        noise_of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def by_its_own_scheduler(unet, x, steps, **noise):
    """diffusers has no unconditional pipeline that scales what the network is shown, so the loop is written out."""
    scheduler = diffusers.EDMEulerScheduler(**noise)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def test_the_noise_of_karras_is_that_of_its_own_scheduler_and_is_taught(root, tmp_path):
    noise = {"sigma_max": 60, "sigma_data": 0.7}
    place = pipelines.pixels(root / "unconditional", scheduler=diffusers.EDMEulerScheduler(**noise))
    teacher = Teacher(place)
    model = teacher.model
    assert (model.noise, model.head, model.data_std) == (VE(most=60), "edm", 0.7)
    unet = diffusers.UNet2DModel.from_pretrained(place, subfolder="unet")
    z, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 20.0])
    with torch.no_grad():
        said = unet(z / (sigma**2 + 0.7**2).sqrt()[:, None, None, None], sigma.log() / 4).sample
        torch.testing.assert_close(Denoiser(teacher)(z, sigma).value, said, rtol=1e-5, atol=1e-5)
        made = model.generate(z, {}, sampling=Sampling(steps=4))
        close(made, by_its_own_scheduler(unet, 60 * z, 4, **noise))
    data = [{"image": torch.rand(1, 8, 8), "split": s} for s in ("train",) * 6 + ("validation",) * 2 + ("test",) * 2]
    sample_with(model, steps=3)
    run = limbeck.distill(
        task="generation",
        data=data,
        teacher=teacher,
        student=str(place),
        method={"use": "dmd2", "sampling_steps": 1, "critic_steps": 2, "critic_lora": 4},
        train={"steps": 2, "batch_size": 3, "lr": 1e-3},
        control=None,
        out=tmp_path / "run",
    )
    pipeline = diffusers.DiffusionPipeline.from_pretrained(run.folder / "student" / "pipeline")
    assert isinstance(pipeline.scheduler, diffusers.EDMEulerScheduler)
    student = Student(run.folder).model
    with torch.no_grad():
        close(student.generate(z, {}), by_its_own_scheduler(pipeline.unet, 60 * z, 1, **noise))
        assert not torch.equal(student.generate(z, {}), model.generate(z, {}, sampling=Sampling(steps=1)))


@torch.no_grad()
def test_an_empty_prompt_is_encoded_or_zeros_as_the_pipeline_has_it(known, root):
    k = known("large")
    given = k.model.understood(PROMPTS)
    nothing = k.model.conditioned(given, torch.tensor([True, True]))
    assert not nothing["condition"].any()
    assert not nothing["pooled"].any()
    model = Teacher(further.large(root / "encoded", zeros=False)).model
    found = model.conditioned(model.understood(PROMPTS), torch.tensor([True, False]))
    empty = k.pipeline.encode_prompt("", device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(found["condition"][0], empty[0][0])  # the same weights
    torch.testing.assert_close(found["pooled"][0], empty[2][0])
    torch.testing.assert_close(found["condition"][1], given["condition"][1])


@torch.no_grad()
def test_a_solver_of_flows_is_read_as_they_are(tmp_path):
    """It begins at the share 0.999, and tells the network whole steps; told them at its sigmas, samples are its own."""
    usual = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction", "solver_order": 1}
    k = Known("sana", tmp_path, scheduler=diffusers.DPMSolverMultistepScheduler(**usual))
    assert (k.model.noise, k.model.head) == (Flow(shift=3, scale=1000), "velocity")
    asked, given, theirs = Denoiser(k.teacher), k.model.understood(PROMPTS), k.sampled(1.0)

    def said(x, t):
        found = asked(x, (1000 * t).floor() / 1000, given)
        return replace(found, alpha=1 - t[:, None, None, None], sigma=t[:, None, None, None])

    times = k.pipeline.scheduler.sigmas
    close(solvers.sample(said, k.z, k.model.noise, times), theirs)
    assert 1e-4 < (times - k.model.noise.grid(4)).abs().max() < 1e-3
    student = Student(k.place)
    sample_with(student.model, steps=2)
    (tmp_path / "out").mkdir()
    assert to_diffusers.write(Package(student, tmp_path / "out"))["check"]["largest_error"] <= 1e-4


def test_times_are_on_the_scale_of_the_network(known):
    network = known("sana").network
    scaled = type(network).from_config({**network.config, "_use_default_values": [], "timestep_scale": 0.001})
    given, t = {"condition": torch.randn(2, 3, 16)}, torch.tensor([300.0, 800.0])
    assert torch.equal(call_of(scaled, "text").words(known("sana").z, t, given)["timestep"], 0.001 * t)


@pytest.mark.parametrize("kind", ["sana", "lumina"])
@torch.no_grad()
def test_an_instruction_stands_before_a_prompt_and_not_before_nothing(known, kind):
    k = known(kind)
    given = k.model.understood(PROMPTS)
    nothing = k.model.conditioned(given, torch.tensor([True, True]))
    assert nothing["mask"].sum(1).tolist() == [1, 1]  # where a text begins
    assert nothing["condition"].shape == given["condition"].shape
    further = {"sana": {"complex_human_instruction": False}, "lumina": {"system_prompt": "-"}}[kind]
    bare = k.pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, device="cpu", **further)[0]
    assert not torch.allclose(bare[:, -1], given["condition"][:, -1])


@torch.no_grad()
def test_texts_of_all_batches_have_one_shape_and_what_fills_them_up_is_not_heard(known):
    k = known("qwen")
    short, long = k.model.understood(["a"]), k.model.understood(["a", "a longer text"])
    assert short["condition"].shape == (1, 512, 16)
    assert int(short["mask"].sum()) == int(long["mask"][0].sum()) < int(long["mask"][1].sum())
    t, alone = torch.tensor([0.5]), k.model.prediction(k.z[:1], torch.tensor([0.5]), short).value
    loud = short | {"condition": short["condition"] + 1e3 * (1 - short["mask"])[..., None]}
    torch.testing.assert_close(k.model.prediction(k.z[:1], t, loud).value, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_text_encoder_that_was_left_out_is_zeros(root):
    place = further.joint(root / "two encoders", third=False)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place, text_encoder_3=None, tokenizer_3=None)
    theirs = pipeline.encode_prompt(PROMPTS, None, None, device="cpu", do_classifier_free_guidance=False)
    model = Teacher(place).model
    ours = model.understood(PROMPTS)
    torch.testing.assert_close(ours["condition"], theirs[0])
    torch.testing.assert_close(ours["pooled"], theirs[2])
    assert model.companions.pipeline.transformer is None  # it was lent for that time alone


def test_squares_of_latents_are_packed_as_theirs():
    pipeline, x = diffusers.FluxPipeline, torch.randn(3, 5, 4, 6)
    assert torch.equal(packed(x), pipeline._pack_latents(x, 3, 5, 4, 6))
    assert torch.equal(unpacked(packed(x), x), x)


@torch.no_grad()
def test_a_picture_of_another_size_and_its_form(known):
    k = known("large")
    wide = Teacher(k.place, args={"size": [4, 8]}).model
    assert wide.shape == (4, 4, 8)
    x, t, given = torch.randn(2, 4, 4, 8), torch.tensor([5.0, 500.0]), wide.understood(PROMPTS)
    ids = torch.tensor([[8.0, 16, 0, 0, 8, 16]]).repeat(2, 1)
    added = {"text_embeds": given["pooled"], "time_ids": ids}
    theirs = k.network(x, t - 1, encoder_hidden_states=given["condition"], added_cond_kwargs=added).sample
    torch.testing.assert_close(wide.prediction(x, t, given).value, theirs, rtol=1e-5, atol=1e-5)
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24}
    small |= {"sample_size": 8, "in_channels": 4, "caption_channels": 16}
    net = diffusers.PixArtTransformer2DModel(**small, use_additional_conditions=True)
    call = call_of(net, "text", pipeline=k.pipeline)
    e, m = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    sizes = {"resolution": torch.tensor([[8.0, 16]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    theirs = net(x, encoder_hidden_states=e, timestep=t, encoder_attention_mask=m, added_cond_kwargs=sizes).sample
    ours = net(**call.words(x, t, {"condition": e, "mask": m})).sample
    assert torch.equal(ours, theirs)
    assert call.said(ours, x).shape == x.shape


def test_a_smaller_network_also_differs_where_the_teachers_configuration_says_nothing(known, tmp_path):
    place = known("joint").place / "transformer"
    config = json.loads((place / "config.json").read_text())
    assert config.pop("dual_attention_layers") == []
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "config.json").write_text(json.dumps(config))
    (tmp_path / "t" / "diffusion_pytorch_model.safetensors").write_bytes(
        (place / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    args = {"config": str(tmp_path / "t"), "scheduler": str(known("joint").place / "scheduler")}
    smaller = Student("limbeck.models.adapters.of_diffusers:build", args=args | {"dual_attention_layers": [0]}).model
    assert smaller.network.config.dual_attention_layers == [0]


def test_what_cannot_be_called_is_refused(known, tmp_path):
    place = known("packed").place
    with pytest.raises(RecipeError, match="must be even"):
        Teacher(place, args={"size": [8, 5]})
    assert Teacher(place, args={"embedded_guidance": 2}).model.call.guidance == 2
    with pytest.raises(RecipeError, match="not shown a scale of guidance"):
        Teacher(known("joint").place, args={"embedded_guidance": 2})
    alone = Teacher(known("joint").place / "transformer", args={"scheduler": str(known("joint").place / "scheduler")})
    with pytest.raises(RecipeError, match="one of the whole"):
        Denoiser(alone)(torch.randn(2, 4, 8, 8), torch.rand(2), {"condition": torch.randn(2, 3, 16)})
    filling = diffusers.UNet2DModel.from_config({**diffusers.UNet2DModel.load_config(pipelines.pixels(tmp_path / "p") / "unet"), "in_channels": 3})  # fmt: skip
    assert filling.config.out_channels == 1
    with pytest.raises(RecipeError, match="more than the noisy sample"):
        call_of(filling, "none")
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "text_embed_dim": 8}
    other = diffusers.CogView4Transformer2DModel(**small, time_embed_dim=8, condition_dim=4)
    with pytest.raises(RecipeError, match="CogView4Transformer2DModel is called"):
        call_of(other, "text")
    with pytest.raises(RecipeError, match="args.size=64"):
        call_of(diffusers.UNet2DModel.from_config({**filling.config, "in_channels": 1, "sample_size": None}), "none")


def rows():
    g = torch.Generator().manual_seed(0)
    words = ["a cat", "dog", "b", "a b c"]
    return [
        {"latent": torch.randn(4, 8, 8, generator=g), "prompt": words[i % 4], "split": split}
        for split, n in (("train", 6), ("validation", 4), ("test", 4))
        for i in range(n)
    ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("karras", "alpha")])
def test_it_teaches_a_one_step_pipeline_that_opens_without_us(known, tmp_path, kind):
    k = known(kind)
    both = {"model": str(k.place), "args": k.args | {"pixels": "latents"}}
    teacher = Teacher(both["model"], args=both["args"])
    sample_with(teacher.model, steps=3)  # how it is measured
    judged = {"gan_weight": 1e-3} if kind == "joint" else {}
    run = limbeck.distill(
        task="generation",
        data=rows(),
        teacher=teacher,
        student=both,
        method={"use": "dmd2", "sampling_steps": 1, "critic_steps": 2, "guidance": 2.0, "critic_lora": 4} | judged,
        train={"steps": 2, "batch_size": 3, "lr": 1e-3},
        control=None,
        out=tmp_path / "run",
    )
    assert json.loads((run.folder / "result.json").read_text())["student"]["figures"]["evaluations"] == 1
    model = Student(run.folder).model
    place = run.folder / "student" / "pipeline"
    pipeline = diffusers.DiffusionPipeline.from_pretrained(place)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is type(k.pipeline)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    ours, first = dict(model.network.named_parameters()), dict(k.network.named_parameters())
    shipped = dict(getattr(pipeline, name).named_parameters())
    assert shipped.keys() == first.keys()
    assert all(torch.equal(shipped[n], ours[n]) for n in shipped)
    assert any(not torch.equal(shipped[n], first[n]) for n in shipped)
    k.pipeline, before = pipeline, k.pipeline
    try:
        theirs = k.sampled(1.0, z=k.z * model.noise.sigma(torch.tensor(model.noise.last)), num_inference_steps=1)
    finally:
        k.pipeline = before
    with torch.no_grad():
        made = model.generate(k.z, model.understood(PROMPTS))
    close(made, theirs)


@pytest.mark.parametrize("kind", ["large", "alpha", "joint", "packed", "sana", "qwen", "aura", "lumina"])
@pytest.mark.parametrize("solver", ["ddim", "renoise"])
def test_what_is_exported_makes_the_same_pictures(known, tmp_path, kind, solver):
    """Two steps, whose times a shift moves (one where the pipeline has its own way for it); `compare` refuses other pictures."""
    k = known(kind)
    student = Student(k.place, args=k.args)
    sample_with(student.model, steps=1 if kind == "alpha" else 2, solver=solver)
    (tmp_path / "out").mkdir()
    told = to_diffusers.write(Package(student, tmp_path / "out"))
    assert told["check"]["largest_error"] <= 1e-4
    if kind in ("packed", "qwen"):  # its pipeline would make pictures of another size
        assert ("guidance_scale=3.5" if kind == "packed" else "true_cfg_scale=1") in told["usage"]
        assert "height=16, width=16" in told["usage"]
        assert told["args"]["size"] == [8, 8]
        again = Teacher(tmp_path / "out", args=k.args).model
        assert again.noise == k.model.noise
        student.model.sampling = Sampling(guidance=2.0)
        with pytest.raises(RecipeError, match="cannot be guided by 2"):
            to_diffusers.write(Package(student, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["sana", "aura", "lumina"])
def test_a_guided_student_is_exported_with_its_guidance(known, tmp_path, kind):
    student = Student(known(kind).place)
    sample_with(student.model, steps=2, guidance=3.0)
    told = to_diffusers.write(Package(student, tmp_path))
    assert told["check"]["largest_error"] <= 1e-4
    assert "guidance_scale=3" in told["usage"]
    assert ("cfg_normalization=False" in told["usage"]) == (kind == "lumina")
    assert ("height=" in told["usage"]) == (kind != "lumina")  # whose pipeline asks its network for it
