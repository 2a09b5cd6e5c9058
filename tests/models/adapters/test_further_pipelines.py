"""Further families of diffusers: the same predictions, samples and empty prompts as their own pipelines; taught, shipped, opened.

How times compare. Times of variance-preserving noise are one more than theirs (0 is data here, their step 0 our 1), times of flows their
sigmas. Our grid is even in shares with 0 at the end: their `trailing` spacing for VP; for flows the shares 1, 3/4, 2/4, 1/4, which
FLUX hands its scheduler, and which the shift (fixed, or of the number of tokens) moves as it moves ours: at(u) = s u / (1 + (s - 1) u). Left
alone, FlowMatchEulerDiscreteScheduler (Stable Diffusion 3) goes evenly from 1 to sigma(1 / 1000) and shifts that, and schedulers with
`leading` spacing begin below the top. There the grid is theirs; told `sigmas`, Stable Diffusion 3 samples on ours.
"""

import json

import pipelines
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import transformer_pipelines as further  # noqa: E402

import limbeck  # noqa: E402
from limbeck.actors import Student, Teacher  # noqa: E402
from limbeck.diffusion import solvers  # noqa: E402
from limbeck.diffusion.denoiser import Denoiser  # noqa: E402
from limbeck.diffusion.network import Sampling, sample_with  # noqa: E402
from limbeck.diffusion.noise import VE, VP, Flow  # noqa: E402
from limbeck.errors import RecipeError  # noqa: E402
from limbeck.models.adapters.calls import packed, unpacked  # noqa: E402
from limbeck.models.adapters.schedulers import noise_of  # noqa: E402

PROMPTS = ["a cat", "dog"]
SIDE = {"height": 16, "width": 16}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
KINDS = {
    "large": (further.large, {}, SIDE),
    "captions": (further.captions, {}, SIDE | {"use_resolution_binning": False, "clean_caption": False}),
    "joint": (further.joint, {}, SIDE),
    "packed": (further.packed, {"size": 8}, SIDE),
    "v": (further.velocities, {}, SIDE),
    "zero": (lambda folder: further.velocities(folder, **ZERO), {}, SIDE),
}
BOTH = pytest.mark.parametrize("kind", KINDS)


class Known:
    """A pipeline as its library opens it, and as a teacher."""

    def __init__(self, kind, root):
        make, args, self.words = KINDS[kind]
        self.kind, self.args, self.place = kind, args, make(root / kind)
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
        more = {"large": {"prompt_2": None}, "joint": {"prompt_2": None, "prompt_3": None}}.get(self.kind, {})
        more |= {} if self.kind == "captions" else {"num_images_per_prompt": 1}
        found = p.encode_prompt(prompt=PROMPTS, device="cpu", do_classifier_free_guidance=True, **more)
        if self.kind == "captions":
            added = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
            e, m, n, k = found
            return [{"encoder_hidden_states": a, "encoder_attention_mask": b} | added for a, b in ((e, m), (n, k))]
        if self.kind in ("v", "zero"):
            return [{"encoder_hidden_states": e} for e in found]
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
        if self.kind == "packed":
            squares = self.pipeline._pack_latents(x, 2, 4, 8, 8)
            value = self.network(hidden_states=squares, timestep=t, return_dict=False, **words)[0]
            return self.pipeline._unpack_latents(value, 16, 16, 2)
        if self.kind == "joint":
            return self.network(hidden_states=x, timestep=1000 * t, return_dict=False, **words)[0]
        return self.network(x, timestep=t - 1, return_dict=False, **words)[0][:, :4]

    def sampled(self, w, z=None, **how):
        """Four steps of the pipeline itself from these latents, guided by w."""
        guided = {"guidance_scale": w}
        z = self.z if z is None else z
        if self.kind == "packed":
            guided = {"guidance_scale": 3.5} | ({"true_cfg_scale": w, "negative_prompt": ["", ""]} if w > 1 else {})
            z = self.pipeline._pack_latents(z, 2, 4, 8, 8)
        how = how or {"num_inference_steps": 4}
        x = self.pipeline(PROMPTS, latents=z, output_type="latent", **self.words, **guided, **how).images
        return self.pipeline._unpack_latents(x, 16, 16, 2) if self.kind == "packed" else x


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("further")


@pytest.fixture(scope="module")
def known(root):
    made = {}
    return lambda kind: made.setdefault(kind, None) or made.__setitem__(kind, Known(kind, root)) or made[kind]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


def times_of(scheduler, noise):
    """The times of a scheduler that has sampled, as ours."""
    if isinstance(noise, Flow):
        return scheduler.sigmas
    last = 0.0 if scheduler.config.get("set_alpha_to_one", True) else 1.0
    return torch.cat([scheduler.timesteps + 1.0, torch.tensor([last])])


@BOTH
@torch.no_grad()
def test_a_prediction_is_the_networks_own_and_so_is_that_of_nothing(known, kind):
    k = known(kind)
    t = torch.tensor([0.3, 0.8]) if isinstance(k.model.noise, Flow) else torch.tensor([30.0, 700.0])
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


@BOTH
@pytest.mark.parametrize("w", [1.0, 3.0])
@torch.no_grad()
def test_samples_are_the_pipelines_own(known, kind, w):
    """Euler's steps (DDIM is that of VP) at the scheduler's own times; on our grid without further ado where that is theirs too."""
    k = known(kind)
    theirs = k.sampled(w)
    noise, asked, given = k.model.noise, Denoiser(k.teacher), k.model.understood(PROMPTS)
    times = times_of(k.pipeline.scheduler, noise)
    close(solvers.sample(lambda x, t: asked(x, t, given, guidance=w), k.z, noise, times), theirs)
    alone = k.model.generate(k.z, given, sampling=Sampling(steps=4, guidance=w))
    if kind in ("captions", "packed", "zero"):
        torch.testing.assert_close(noise.grid(4), times, rtol=1e-6, atol=1e-6)
        close(alone, theirs)
    else:
        assert (noise.grid(4) - times).abs().max() > 1e-3
    if kind == "joint":
        close(alone, k.sampled(w, sigmas=[1.0, 0.75, 0.5, 0.25]))


def test_what_their_schedulers_mean(known):
    assert known("joint").model.noise == Flow(shift=3, scale=1000)
    assert known("v").model.noise == VP(betas="scaled", start=0.00085, end=0.012)
    assert known("zero").model.noise == VP(betas="scaled", start=0.00085, end=0.012, zero_terminal=True)
    assert [known(kind).model.head for kind in KINDS] == ["epsilon", "epsilon", "velocity", "velocity", "v", "v"]
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


@torch.no_grad()
def test_the_noise_of_karras_is_sampled_as_its_own_scheduler_does(root):
    """diffusers has no unconditional pipeline that scales what the network is shown, so the loop is written out, with its EDMEulerScheduler."""
    scheduler = diffusers.EDMEulerScheduler(sigma_max=60, sigma_data=0.7)
    place = pipelines.pixels(root / "karras", scheduler=scheduler)
    model = Teacher(place).model
    assert (model.noise, model.head, model.data_std) == (VE(most=60), "edm", 0.7)
    unet = diffusers.UNet2DModel.from_pretrained(place, subfolder="unet")
    z = torch.randn(2, 1, 8, 8)
    sigma = torch.tensor([0.5, 20.0])
    root_of = (sigma**2 + 0.7**2).sqrt()[:, None, None, None]
    torch.testing.assert_close(
        Denoiser(Teacher(place))(z, sigma).value, unet(z / root_of, sigma.log() / 4).sample, rtol=1e-5, atol=1e-5
    )
    scheduler.set_timesteps(4)
    x = 60 * z  # theirs begins with sqrt(sigma^2 + 1) for it
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    torch.testing.assert_close(model.noise.grid(4), scheduler.sigmas)
    close(model.generate(z, {}, sampling=Sampling(steps=4)), x)


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
    net = diffusers.PixArtTransformer2DModel(
        **dict(num_layers=1, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, caption_channels=16),
        **dict(sample_size=8, in_channels=4, out_channels=8, use_additional_conditions=True),
    )
    from limbeck.models.adapters.calls import call_of

    call = call_of(net, "text", pipeline=k.pipeline)
    e, m = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    sizes = {"resolution": torch.tensor([[8.0, 16]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    theirs = net(x, encoder_hidden_states=e, timestep=t, encoder_attention_mask=m, added_cond_kwargs=sizes).sample
    ours = net(**call.words(x, t, {"condition": e, "mask": m})).sample
    assert torch.equal(ours, theirs)
    assert call.said(ours, x).shape == x.shape


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
    from limbeck.models.adapters.calls import call_of

    with pytest.raises(RecipeError, match="more than the noisy sample"):
        call_of(filling, "none")
    other = diffusers.AuraFlowTransformer2DModel(
        **dict(num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=4, num_attention_heads=2),
        **dict(sample_size=8, joint_attention_dim=8, caption_projection_dim=8, pos_embed_max_size=64),
    )
    with pytest.raises(RecipeError, match="AuraFlowTransformer2DModel is called"):
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


@BOTH
def test_it_teaches_a_one_step_pipeline_that_opens_without_us(known, tmp_path, kind):
    k = known(kind)
    both = {"model": str(k.place), "args": k.args | {"pixels": "latents"}}
    teacher = Teacher(both["model"], args=both["args"])
    sample_with(teacher.model, steps=3)  # how it is measured
    judged = {"gan_weight": 1e-3} if kind in ("joint", "packed") else {}
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
        theirs = k.sampled(1.0, num_inference_steps=1)
    finally:
        k.pipeline = before
    with torch.no_grad():
        made = model.generate(k.z, model.understood(PROMPTS))
    torch.testing.assert_close(made, theirs, rtol=1e-2, atol=1e-2 * float(theirs.std()))
