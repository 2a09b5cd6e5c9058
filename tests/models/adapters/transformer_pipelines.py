"""Tiny pipelines of further families, saved locally: two and three text encoders, transformers, flows, packed latents."""

import json

import torch
from pipelines import autoencoder

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip(folder, projected=False, width=8):
    """A CLIP text encoder that reads letters, and its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=width,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), tokenizer


def t5(kind="T5", width=16):
    """A T5 (or UMT5) encoder that reads letters, and its tokenizer."""
    import transformers
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(i > 2)) for i, piece in enumerate(pieces)], extra_ids=0)
    sides = {"d_model": width, "d_kv": 4, "d_ff": width, "num_layers": 1, "num_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(pieces), **sides)
    return getattr(transformers, f"{kind}EncoderModel")(config), tokenizer


def gemma(width=16):
    """A Gemma 2 that reads letters, and its tokenizer."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *LETTERS]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], add_bos_token=True)
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return Gemma2Model(config), tokenizer


def qwen(width=16):
    """A Qwen 2.5 VL that reads bytes, and its tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    words = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    sides = {"hidden_size": width, "intermediate_size": width}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": len(words), "rope_parameters": rotary, **sides, **heads},
        vision_config={"depth": 1, "num_heads": 2, "out_hidden_size": width, **sides},
    )
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer


def latents(**changes):
    """The autoencoder of the other tiny pipelines, with another scale."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config({**autoencoder().config, "_use_default_values": [], "sample_size": 16, **changes})


def unet(**changes):
    """A U-Net on 8x8 latents that hears texts."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=4,
        cross_attention_dim=16,
        **changes,
    )


def large(folder, zeros=True, scheduler=None, **changes):
    """A Stable Diffusion XL; `zeros`: what an empty text is encoded as; `changes` to its autoencoder."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    (one, its), (two, theirs) = clip(folder / "one"), clip(folder / "two", projected=True)
    StableDiffusionXLPipeline(
        vae=latents(**{"scaling_factor": 0.13025} | changes),
        text_encoder=one,
        text_encoder_2=two,
        tokenizer=its,
        tokenizer_2=theirs,
        unet=unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 8,
            use_linear_projection=True,
        ),
        scheduler=scheduler or EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **BETAS),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def karras(folder):
    """A Stable Diffusion XL with the noise of Karras et al., and latents that are centred (as Playground 2.5)."""
    from diffusers import EDMEulerScheduler

    centred = {"latents_mean": [-1.6, 1.1, 0.5, 0.2], "latents_std": [8.4, 6.0, 4.5, 5.3], "scaling_factor": 0.5}
    return large(folder, scheduler=EDMEulerScheduler(), **centred)


def captions(folder, kind="PixArtSigmaPipeline"):
    """A PixArt (sigma, or alpha) with a learnt variance."""
    import diffusers
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    torch.manual_seed(0)
    encoder, tokenizer = t5()
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    )
    getattr(diffusers, kind)(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=latents(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(solver_order=1, timestep_spacing="trailing"),
    ).save_pretrained(folder)
    return folder


def sana(folder, scheduler=None):
    """A Sana: an autoencoder without chance that makes pictures four times smaller, a text encoder behind an instruction."""
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

    torch.manual_seed(0)
    encoder, tokenizer = gemma()
    stages = {"block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), (5,))}
    kinds = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock")}
    half = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (stages | kinds).items()}
    SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **half),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder)
    return folder


def joint(folder, third=True):
    """A Stable Diffusion 3, with or without its third text encoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    (one, its), (two, theirs) = clip(folder / "one", projected=True), clip(folder / "two", projected=True)
    encoder, tokenizer = t5() if third else (None, None)
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            joint_attention_dim=16,
            caption_projection_dim=8,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=latents(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=one,
        tokenizer=its,
        text_encoder_2=two,
        tokenizer_2=theirs,
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    ).save_pretrained(folder)
    return folder


def packed(folder):
    """A FLUX that was distilled from a guided one, with times that are shifted by the number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    (one, its), (encoder, tokenizer) = clip(folder / "one"), t5()
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            axes_dims_rope=(4, 2, 2),
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=latents(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=one,
        tokenizer=its,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    ).save_pretrained(folder)
    return folder


def qwen_image(folder):
    """A Qwen-Image: an autoencoder of films, times that are shifted by the number of tokens and end above 0."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    encoder, tokenizer = qwen()
    dynamic = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **dynamic),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.7571, -0.7089, -0.9113, 0.1075],
            latents_std=[2.8184, 1.4541, 2.3275, 2.6558],
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 2, 2),
        ),
    ).save_pretrained(folder)
    return folder


def aura_flow(folder):
    """An AuraFlow: joint blocks, then blocks of one sequence."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    encoder, tokenizer = t5("UMT5")
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    with torch.no_grad():
        for weight in transformer.time_step_proj.parameters():
            weight.mul_(3)  # gates so wide that a word among 256 places is heard
    AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=latents(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    ).save_pretrained(folder)
    return folder


def lumina(folder):
    """A Lumina 2: text and sample are refined apart, then one sequence."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    torch.manual_seed(0)
    encoder, tokenizer = gemma()
    stages = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            cap_feat_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=latents(scaling_factor=0.3611, shift_factor=0.1159, block_out_channels=(8,) * 4, **stages),
        text_encoder=encoder,
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    return folder


def velocities(folder, **changes):
    """A Stable Diffusion 2: predicts v; `changes` to its scheduler."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    text, tokenizer = clip(folder / "one", width=16)
    usual = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"}
    StableDiffusionPipeline(
        vae=latents(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=DDIMScheduler(**BETAS | usual | changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
