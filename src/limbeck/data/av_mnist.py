"""`av-mnist`: MNIST images with most of their variance removed, paired with recordings of spoken digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from limbeck.data.digit_files import Recordings, folder_of, read_mnist, read_recordings
from limbeck.data.spectrograms import log_mel, power_spectrogram
from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError, nearest

FOUR = ("jackson", "nicolas", "theo", "yweweler")  # the speakers FSDD had when AV-MNIST was published
FIRST_TEST_TAKE = 40  # takes 0-39 go with MNIST's training file, 40-49 with its test file


def av_mnist(
    path: str | Path | None = None,
    *,
    image_energy: float | None = 0.25,
    components: int | None = None,
    audio_noise: float = 0.0,
    spectrogram: Literal["log-mel", "power"] = "log-mel",
    size: int | None = None,
    speakers: Sequence[str] | None = FOUR,
    split: Literal["permutation", "official"] = "permutation",
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """70,000 pairs of a degraded handwritten digit and the same digit spoken: columns `image`, `audio`, `label`.

    Built as the published AV-MNIST is (Vielzeuf et al. 2018, CentralNet; the widely used builder of the MFAS project):

    - Images: principal components of MNIST's training file and of its test file, each fitted on its own, on which only
      the leading ones are kept that together hold at most `image_energy` of the variance (0.25: three of 784), written
      back WITHOUT adding the mean; then each image is scaled to [0, 1] by its own minimum and maximum.
    - Audio: FSDD's takes 0-39 for the training file, 40-49 for the test file. Per digit the recordings are taken in turn
      as the labels come, one after the other (so that sound and label cannot get out of step); each spectrogram is
      scaled to [0, 1] by its own minimum and maximum.

    Not as published: the noise is white (the builder mixes in clips of ESC-50, by default with factor 0), and the
    spectrogram is not drawn into a picture. Figures on differently built AV-MNISTs cannot be compared: see the
    fingerprint.

    Args:
        path: a folder with mnist.npz and fsdd.npz, or with MNIST's .gz files and FSDD's .wav files; none: fetched.
        image_energy: see above; `None` keeps the images whole.
        components: keep so many components instead (196: the builder's first version, which removes almost nothing).
        audio_noise: standard deviation of noise added to the wave (in [-1, 1]), drawn once per recording from `seed`.
        spectrogram: `log-mel` (first second, 60 dB) or `power`: the published linear one, see `power_spectrogram`.
        size: bands and frames; by default 32 for `log-mel` and 112 for `power` (3.5 GB for all rows: give a `limit`).
        speakers: whose recordings; by default the four of the publication (160 + 40 recordings per digit), `None`: all.
        split: `permutation`: both files merged, shuffled by `seed`, 60 / 20 / 20 %, as MST-Distill does it (recordings of
            the test split are then heard in training); `official`: MNIST's test file is the test split, and a seventh of
            all rows, drawn by `seed` from the training file, is for validation.
        limit: use only so many rows in all, in the same proportions.

    Returns:
        image [1, 28, 28], audio [1, size, size], label: a digit.

    Raises:
        RecipeError: missing files, no network, or an option outside its range.
    """
    if spectrogram not in ("log-mel", "power"):
        raise RecipeError(f"There is no spectrogram '{spectrogram}'. {nearest(spectrogram, ['log-mel', 'power'])}")
    if split not in ("permutation", "official"):
        raise RecipeError(f"There is no split '{split}' of av-mnist. {nearest(split, ['permutation', 'official'])}")
    if audio_noise < 0:
        raise RecipeError(f"audio_noise is a standard deviation >= 0; given: {audio_noise}.")
    folder = folder_of(path)
    mnist, recordings = read_mnist(folder), chosen(read_recordings(folder), speakers)
    files = []
    for name, in_file in (("train", recordings.take < FIRST_TEST_TAKE), ("test", recordings.take >= FIRST_TEST_TAKE)):
        labels = mnist[f"y_{name}"].astype(np.int64)
        files.append((mnist[f"x_{name}"], labels, by_label(labels, np.flatnonzero(in_file), recordings.label)))
    counts = [len(labels) for _, labels, _ in files]
    rows = split_rows(counts, split, limit, seed)
    images = np.concatenate([degraded(x, image_energy, components) for x, _, _ in files])
    labels, spoken = (np.concatenate([part[k] for part in files]) for k in (1, 2))
    sounds = spectrograms(recordings, spectrogram, size, audio_noise, seed)
    splits, first_id = {}, 0
    for name, index in rows.items():
        columns = {"image": images[index, None], "audio": sounds[spoken[index], None], "label": labels[index]}
        said = recordings.names
        ids = [f"image {row} + {said[spoken[row]]}" for row in index]
        splits[name] = TensorSplit({key: torch.from_numpy(value) for key, value in columns.items()}, first_id, ids)
        first_id += len(index)
    kept = (
        f"{components} components" if components else f"{image_energy:.0%} of the variance" if image_energy else "whole"
    )
    return Data(
        splits=splits,
        columns={
            "image": f"handwritten digit, grey, {kept}",
            "audio": f"spoken digit, {spectrogram} spectrogram, noise {audio_noise:g}",
            "label": "the digit",
        },
        labels={"label": [str(digit) for digit in range(10)]},
        source=f"limbeck.data.av_mnist:av_mnist({folder}, split={split}, seed={seed})",
    )


def chosen(recordings: Recordings, speakers: Sequence[str] | None) -> Recordings:
    if speakers is None:
        return recordings
    there = sorted(set(recordings.speaker.tolist()))
    unknown = [name for name in speakers if name not in there]
    if unknown:
        raise RecipeError(f"FSDD here has no speaker '{unknown[0]}'. {nearest(unknown[0], there)}")
    kept = np.flatnonzero(np.isin(recordings.speaker, list(speakers)))
    waves = [recordings.waves[i] for i in kept]
    return Recordings(waves, recordings.label[kept], recordings.speaker[kept], recordings.take[kept], recordings.rate)


def by_label(labels: np.ndarray, pool: np.ndarray, spoken: np.ndarray) -> np.ndarray:
    """For each label, in order, the next recording of that digit out of `pool` (indices), starting over at its end."""
    index = np.empty(len(labels), np.int64)
    for digit in range(10):
        wanted = np.flatnonzero(labels == digit)
        there = pool[spoken[pool] == digit]
        if len(wanted) and not len(there):
            raise RecipeError(f"FSDD here has no recording of the digit {digit} for one of MNIST's two files.")
        index[wanted] = np.resize(there, len(wanted))
    return index


def split_rows(counts: Sequence[int], split: str, limit: int | None, seed: int) -> dict[str, np.ndarray]:
    """Row numbers (training file first, then test file) of each split."""
    train, total = counts[0], sum(counts)
    if limit is not None and not 10 <= limit <= total:
        raise RecipeError(f"limit is the number of rows to use in all: 10 to {total:,}; given: {limit}.")
    share = (limit or total) / total
    draw = np.random.default_rng(seed)
    if split == "permutation":
        order = draw.permutation(total)[: limit or total]
        cuts = [round(0.6 * len(order)), round(0.8 * len(order))]
        return dict(zip(("train", "validation", "test"), np.split(order, cuts)))
    test = train + np.arange(round(share * counts[1]))
    order = draw.permutation(train)[: round(share * train)]
    held = round(share * total / 7)
    return {"train": order[held:], "validation": order[:held], "test": test}


def degraded(
    images: np.ndarray, energy: float | None = None, components: int | None = None
) -> Float[np.ndarray, "rows height width"]:
    """Images written back from their leading principal components without the mean, each then scaled to [0, 1]."""
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    if energy is not None or components is not None:
        flat = leading_part(flat, energy, components)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    return ((flat - low) / np.maximum(high - low, 1e-12)).reshape(images.shape)


def leading_part(
    flat: Float[np.ndarray, "rows pixels"], energy: float | None = None, components: int | None = None
) -> Float[np.ndarray, "rows pixels"]:
    """(X - mean) V V^T with V the leading n eigenvectors of the covariance of X; the mean is not added back.

    n is `components`, or the largest number of components that together hold at most `energy` of the variance.
    """
    centred = flat - flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    covariance = np.zeros((flat.shape[1], flat.shape[1]))
    for start in range(0, len(centred), 4096):  # blocks: single-precision products, double-precision sums
        block = centred[start : start + 4096]
        covariance += block.T @ block
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = np.clip(variances[::-1], 0, None), vectors[:, ::-1]
    if components is None:
        if energy is None or not 0 < energy < 1:
            raise RecipeError(f"image_energy is a share of the variance between 0 and 1 (None: all); given: {energy}.")
        components = int(np.argmax(np.cumsum(variances) / variances.sum() > energy))
    if not 1 <= components <= flat.shape[1]:
        first = variances[0] / variances.sum()
        raise RecipeError(
            f"{components} principal components cannot be kept: 1 to {flat.shape[1]} can, and the first alone holds "
            f"{first:.1%} of the variance."
        )
    kept = vectors[:, :components].astype(np.float32)
    return centred @ kept @ kept.T


def spectrograms(
    recordings: Recordings, kind: str, size: int | None, noise: float, seed: int
) -> Float[np.ndarray, "recordings bands frames"]:
    """One spectrogram per recording, each scaled to [0, 1]."""
    found = []
    for number, wave in enumerate(recordings.waves):
        if noise:
            draw = np.random.default_rng([seed, number])
            wave = wave + np.float32(noise) * draw.standard_normal(len(wave), dtype=np.float32)
        if kind == "power":
            one = power_spectrogram(wave, recordings.rate, size=size or 112)
        else:
            one = log_mel(wave, recordings.rate, mels=size or 32, frames=size or 32)
        low, high = one.min(), one.max()
        found.append((one - low) / max(high - low, 1e-30))
    return np.stack(found).astype(np.float32)
