"""A tiny Stable Diffusion, photos with prompts, and a tiny CLIP, made here and now, for trying `limbeck distill few-step` out.

    python examples/tiny_diffusion_models.py FOLDER
    limbeck distill few-step teacher=FOLDER/teacher student=FOLDER/teacher data=FOLDER/photos train.steps=200 train.batch_size=16 \
        train.lr=1e-4 evaluate.fid.classifier=FOLDER/clip evaluate.clip-score.model=FOLDER/clip evaluate.fid.samples=100

All parts are the real classes of diffusers and transformers: an autoencoder, a text encoder with its tokenizer, a U-Net and a
scheduler in a pipeline folder. They learn for some minutes to draw a shape in a colour, 16 x 16. One step instead of four:
`method.sampling_steps=1`. Real ones are named in the same way: `teacher=stable-diffusion-v1-5/stable-diffusion-v1-5`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIDE, LENGTH = 16, 8
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES = ("disc", "square", "cross")
WORDS = ("a", *COLOURS, *SHAPES)


def photo(colour: str, shape: str, draw: random.Random) -> Image.Image:
    """A shape somewhere on grey."""
    picture = Image.new("RGB", (SIDE, SIDE), (draw.randrange(90, 130),) * 3)
    pen, half = ImageDraw.Draw(picture), draw.randrange(3, 6)
    x, y = (draw.randrange(half, SIDE - half) for _ in range(2))
    box = (x - half, y - half, x + half, y + half)
    if shape == "cross":
        pen.rectangle((x - half, y - 1, x + half, y + 1), COLOURS[colour])
        pen.rectangle((x - 1, y - half, x + 1, y + half), COLOURS[colour])
    else:
        (pen.ellipse if shape == "disc" else pen.rectangle)(box, COLOURS[colour])
    return picture


def photos(folder: Path, count: int, seed: int = 0) -> Path:
    """`0000.png` beside `0000.txt` with its prompt, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for i in range(count):
        colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
        photo(colour, shape, draw).save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text(f"a {colour} {shape}")
    return folder


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-pair encoding with merges for the words of the prompts, one token each; other words are spelled."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            merges.append(f"{symbols[0]} {symbols[1]}")
            symbols = [symbols[0] + symbols[1], *symbols[2:]]
            pieces.append(symbols[0])
    known = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def text_config(tokens: CLIPTokenizer, width: int) -> dict[str, Any]:
    """What a text encoder of this width is configured with."""
    return {
        "vocab_size": len(tokens),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }


def pipeline(tokens: CLIPTokenizer, width: int = 16, seed: int = 0) -> StableDiffusionPipeline:
    """A Stable Diffusion with new weights: pictures of 16 x 16, latents of 4 x 8 x 8."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(width, width),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=SIDE,
        latent_channels=4,
        scaling_factor=1.0,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=2 * width,
        attention_head_dim=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_config(tokens, 2 * width))),
        tokenizer=tokens,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def clip(tokens: CLIPTokenizer, width: int = 16, seed: int = 0) -> CLIPModel:
    """A CLIP with new weights that looks at 16 x 16 pixels in patches of 4."""
    torch.manual_seed(seed)
    vision = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text_config(tokens, width), vision_config=vision, projection_dim=width))


def save_clip(model: CLIPModel, tokens: CLIPTokenizer, folder: Path) -> None:
    """The model with its tokenizer and what its pictures are prepared with."""
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)


def read(folder: Path) -> tuple[Tensor, list[str]]:
    """Photos [count, 3, 16, 16] in [0, 1], and their prompts."""
    import numpy

    files = sorted(folder.glob("*.png"))
    pixels = [torch.from_numpy(numpy.array(Image.open(file))).permute(2, 0, 1) / 255 for file in files]
    return torch.stack(pixels), [file.with_suffix(".txt").read_text() for file in files]


def learn_pictures(vae: AutoencoderKL, pictures: Tensor, steps: int) -> None:
    """The autoencoder learns to give pictures back; its scaling factor is set so that latents have unit variance."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    for step in range(steps):
        x = pictures[torch.randint(len(pictures), (32,), generator=torch.Generator().manual_seed(step))] * 2 - 1
        found = vae.encode(x).latent_dist
        loss = F.mse_loss(vae.decode(found.sample()).sample, x) + 1e-4 * found.kl().mean() / found.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        vae.register_to_config(scaling_factor=float(1 / vae.encode(pictures * 2 - 1).latent_dist.mean.std()))


def learn_words(model: CLIPModel, tokens: CLIPTokenizer, pictures: Tensor, prompts: list[str], steps: int) -> None:
    """CLIP learns which picture has which prompt, among one picture of each."""
    kinds = sorted(set(prompts))
    asked = tokens(kinds, padding="max_length", max_length=LENGTH, return_tensors="pt")
    groups = [torch.tensor([i for i, prompt in enumerate(prompts) if prompt == kind]) for kind in kinds]
    processor = CLIPImageProcessorPil()
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    optimizer, right = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.arange(len(kinds))
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        x = pictures[torch.stack([group[torch.randint(len(group), (), generator=g)] for group in groups])]
        z = model(pixel_values=(x - mean) / std, **asked).logits_per_image
        loss = F.cross_entropy(z, right) + F.cross_entropy(z.T, right)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def make(folder: Path, count: int = 800, steps: int = 1500) -> None:
    """Write `photos`, `clip` and, after it has learnt, `teacher`."""
    import limbeck

    pictures, prompts = read(photos(folder / "photos", count))
    tokens = tokenizer(folder / "tokenizer")
    judge, untrained = clip(tokens), pipeline(tokens)
    learn_words(judge, tokens, pictures, prompts, steps // 3)
    save_clip(judge, tokens, folder / "clip")
    learn_pictures(untrained.vae, pictures, steps // 3)
    untrained.save_pretrained(folder / "start")
    limbeck.distill(
        task="generation",
        data=folder / "photos",
        student=folder / "start",
        method={"use": "denoising", "sampling_steps": 20, "solver": "ddim"},
        train={"steps": steps, "batch_size": 32, "lr": 1e-3, "ema": 0.99},
        control="none",
        export=["diffusers"],
        out=folder / "run-teacher",
    )
    (folder / "run-teacher" / "export" / "diffusers").rename(folder / "teacher")


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "tiny-diffusion"))
