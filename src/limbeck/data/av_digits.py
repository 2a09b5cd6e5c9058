"""`av-digits`: handwritten and spoken digits in pairs, small enough for a laptop and shipped with the package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import torch

from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPLITS = ("train", "validation", "test")
IMAGE_SHARES = (897, 300, 600)  # of the 1,797 images
SPLIT_SEED = 1797  # which image is in which split never depends on a run's seed


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's handwritten digits: [1797, 8, 8] float32 in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


def image_rows() -> dict[str, np.ndarray]:
    """Which rows of `images()` belong to which split: fixed for all seeds."""
    order = np.random.default_rng(SPLIT_SEED).permutation(sum(IMAGE_SHARES))
    return dict(zip(SPLITS, np.split(order, np.cumsum(IMAGE_SHARES)[:-1])))


@cache
def clips() -> dict[str, np.ndarray]:
    """The shipped spectrograms, one entry per clip: spectrogram [5600, 32, 32] in [0, 1], label, voice, split."""
    with np.load(str(files("limbeck.data") / "assets" / "spoken-digits.npz")) as stored:
        voice = stored["voice"]
        return {
            "spectrogram": stored["spectrogram"].astype(np.float32) / stored["levels"],
            "label": stored["label"].astype(np.int64),
            "voice": stored["voice_names"][voice],
            "split": stored["voice_split"][voice],
        }


def av_digits(
    *,
    seed: int = 0,
    image_noise: float = 0.3,
    audio_noise: float = 0.35,
    label_noise: float = 0.2,
    train: int = 2400,
    validation: int = 600,
    test: int = 1200,
) -> Data:
    """Pairs of a handwritten digit and the same digit spoken: columns `image`, `audio`, `label`.

    The images (8x8) are scikit-learn's, split once and for all into 897 / 300 / 600. The sounds are log-mel spectrograms
    of synthetic speech (see assets/spoken-digits.md); no voice of one split is heard in another. A pair is an image and a
    clip of the same label and split: images and clips are shuffled by `seed` and taken in turn, so that each image is
    used about equally often. Each pair has its own additive Gaussian noise, drawn once from `seed`: a row always
    looks the same. Noisy values are clipped to [0, 1]. Some training labels are wrong, as hand-made labels are; those of
    validation and test are right. That is what the one who sees and hears is good for: where image and sound agree, a
    label against them is not believed. With `label_noise=0` distillation has little to add here (measured: none).

    Args:
        image_noise, audio_noise: standard deviation of the noise; the clean values lie in [0, 1]; 0 gives them as they are.
        label_noise: probability with which a training label is replaced by one of the nine other digits.
        train, validation, test: number of pairs in each split.

    Returns:
        image [1, 8, 8], audio [1, 32 mel bands, 32 frames of 20 ms], label: a digit.

    Raises:
        RecipeError: negative noise, a probability outside [0, 1], or fewer than one pair in a split.
    """
    if min(image_noise, audio_noise) < 0:
        raise RecipeError(f"Noise is a standard deviation >= 0; given: image {image_noise}, audio {audio_noise}.")
    if not 0 <= label_noise <= 1:
        raise RecipeError(f"label_noise is a probability between 0 and 1; given: {label_noise}.")
    sizes = dict(zip(SPLITS, (train, validation, test)))
    if min(sizes.values()) < 1:
        raise RecipeError(f"Each split of av-digits needs at least one pair; given: {sizes}.")
    splits, first_id = {}, 0
    for number, name in enumerate(SPLITS):
        draw = np.random.default_rng([seed, number])
        splits[name] = pairs(name, sizes[name], draw, image_noise, audio_noise, first_id)
        if name == "train":
            labels = splits[name].tensors["label"]
            labels.copy_(torch.from_numpy(mislabelled(labels.numpy(), label_noise, draw)))
        first_id += sizes[name]
    return Data(
        splits=splits,
        columns={
            "image": f"handwritten digit, grey, noise {image_noise:g}",
            "audio": f"spoken digit, log-mel spectrogram, noise {audio_noise:g}",
            "label": f"the digit; {label_noise:.0%} of the training labels are wrong" if label_noise else "the digit",
        },
        labels={"label": [str(digit) for digit in range(10)]},
        source=f"limbeck.data.av_digits:av_digits(seed={seed})",
    )


def pairs(
    split: str, count: int, draw: np.random.Generator, image_noise: float, audio_noise: float, first_id: int
) -> TensorSplit:
    """`count` pairs of one split; the draws come in a fixed order, so that noise levels do not change the pairs."""
    pixels, digits = images()
    sounds = clips()
    image_index = in_turn(image_rows()[split], count, draw)
    labels = digits[image_index]
    clip_index = np.empty(count, np.int64)
    for digit in range(10):
        wanted = np.flatnonzero(labels == digit)
        there = np.flatnonzero((sounds["split"] == split) & (sounds["label"] == digit))
        clip_index[wanted] = in_turn(there, len(wanted), draw)
    columns = {
        "image": noisy(pixels[image_index], image_noise, draw),
        "audio": noisy(sounds["spectrogram"][clip_index], audio_noise, draw),
        "label": torch.from_numpy(labels),
    }
    names = [f"image {i} + {WORDS[d]} by {sounds['voice'][c]}" for i, d, c in zip(image_index, labels, clip_index)]
    return TensorSplit(columns, first_id, names)


def mislabelled(labels: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """Each label moved, with probability `share`, to one of the nine others."""
    wrong = draw.random(len(labels)) < share
    return np.where(wrong, (labels + draw.integers(1, 10, len(labels))) % 10, labels)


def in_turn(items: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`count` items: whole shuffled rounds of all of them, so that none is used twice more often than another."""
    rounds = [draw.permutation(items) for _ in range(-(-count // len(items)))]
    return np.concatenate(rounds)[:count] if rounds else items[:0]


def noisy(clean: np.ndarray, level: float, draw: np.random.Generator) -> torch.Tensor:
    """[rows, height, width] -> [rows, 1, height, width] with Gaussian noise, clipped to [0, 1]."""
    noise = draw.standard_normal(clean.shape, dtype=np.float32)
    return torch.from_numpy(np.clip(clean + np.float32(level) * noise, 0, 1)[:, None])
