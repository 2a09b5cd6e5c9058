"""A recording on its way to the network: read, mixed, resampled, cut, and turned into a log-mel spectrogram."""

from __future__ import annotations

import io
from math import gcd
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.data.column import CellError
from limbeck.data.spectrograms import frame_powers, mel_filters


def read(file: Path | io.BytesIO) -> tuple[np.ndarray, int]:
    """Samples `[samples, channels]` in [-1, 1] and their rate in Hz, from any format that libsndfile reads."""
    import soundfile

    return soundfile.read(file, dtype="float32", always_2d=True)


def mono(samples: np.ndarray) -> Float[Tensor, "samples"]:
    """The mean over channels; `[samples]` or `[samples, channels]` in."""
    wave = np.asarray(samples, np.float32)
    return torch.from_numpy(np.ascontiguousarray(wave if wave.ndim == 1 else wave.mean(1)))


def resample(wave: Float[Tensor, "samples"], old: int, new: int) -> Float[Tensor, "resampled"]:
    """From `old` to `new` samples per second: ceil(samples * new / old) of them, by a zero-phase polyphase filter."""
    if old == new:
        return wave
    from scipy.signal import resample_poly

    common = gcd(old, new)
    return torch.from_numpy(resample_poly(wave.numpy(), new // common, old // common).astype(np.float32))


def fit(wave: Float[Tensor, "samples"], length: int) -> Float[Tensor, "length"]:
    """Cut at the end, or filled with zeros there."""
    return torch.nn.functional.pad(wave[:length], (0, max(0, length - len(wave))))


def log_mel(
    wave: Float[Tensor, "samples"],
    rate: int,
    mels: int,
    *,
    window: float = 0.025,
    hop: float = 0.010,
    low: float = 0.0,
    floor: float = 1e-8,
) -> Float[Tensor, "1 mels frames"]:
    """Natural logarithm of the power in mel bands, `log(power + floor)`; silence is `log(floor)` = -18.4.

    Power is the mean square of the Hann-weighted frame, `|X_k|^2 / (points sum w^2)` over both halves of the spectrum:
    bands sum to A^2 / 2 for a sine of amplitude A, and to s^2 for white noise of standard deviation s. Frames are
    `window` seconds long and centred on multiples of `hop` seconds, with zeros beyond the ends; there are
    `1 + samples // step` of them (`step` samples per hop). The FFT is so fine that no band falls between two bins.

    Raises:
        CellError: `low` is not below half the rate.
    """
    if low >= rate / 2:
        raise CellError(
            f"has mel bands from {low:g} Hz on, but at {rate} samples per second it ends at {rate / 2:g} Hz"
        )
    length, step = 2 * max(1, round(window * rate / 2)), max(1, round(hop * rate))
    lowest_mel, highest_mel = (2595 * np.log10(1 + hertz / 700) for hertz in (low, rate / 2))
    narrowest = (700 + low) * (10 ** ((highest_mel - lowest_mel) / (mels + 1) / 2595) - 1)
    points = 2 ** int(np.ceil(np.log2(max(length, rate / narrowest))))
    powers = frame_powers(np.pad(wave.numpy(), length // 2), length, step, points)
    powers /= points * 3 * length / 8  # the squares of a Hann window of `length` sum to 3 length / 8
    powers[:, 1:-1] *= 2
    return torch.from_numpy(np.log(powers @ mel_filters(rate, points, mels, low) + floor).T[None].astype(np.float32))
