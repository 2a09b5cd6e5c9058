"""From a waveform to a spectrogram of a fixed size, with numpy alone."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

from limbeck.errors import RecipeError


def frame_powers(
    wave: Float[np.ndarray, " samples"], window: int, hop: int, fft: int, *, taper: str = "hann", detrend: bool = False
) -> Float[np.ndarray, "frames bins"]:
    """|FFT|^2 of every whole frame: frames = 1 + (samples - window) // hop, bins = fft // 2 + 1.

    Args:
        window: samples per frame; `hop`: samples from one frame to the next; `fft`: transform length (zero-padded).
        taper: `hann` (periodic) or `boxcar`.
        detrend: take each frame's mean away first.
    """
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float32), window)[::hop]
    if detrend:
        frames = frames - frames.mean(axis=1, keepdims=True)
    if taper == "hann":
        frames = frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    return np.abs(np.fft.rfft(frames, fft, axis=1)).astype(np.float32) ** 2


@cache
def mel_filters(rate: int, fft: int, mels: int, low: float = 60.0) -> Float[np.ndarray, "bins mels"]:
    """Triangles of height 1, evenly spaced in mel = 2595 log10(1 + f / 700) from `low` Hz to half the sampling rate.

    Raises:
        RecipeError: so many bands that one of them lies between two bins of the transform and would always be silent.
    """
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (low, rate / 2))
    edges = np.linspace(lowest, highest, mels + 2)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = np.arange(fft // 2 + 1)[:, None] * rate / fft
    rise = (bins - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    fall = (hertz[2:] - bins) / (hertz[2:] - hertz[1:-1])
    filters = np.clip(np.minimum(rise, fall), 0, None).astype(np.float32)
    if not filters.any(axis=0).all():
        raise RecipeError(f"{mels} mel bands are too many for {rate} Hz in frames of {fft} samples; ask for fewer.")
    return filters


def log_mel(
    wave: Float[np.ndarray, " samples"],
    rate: int,
    *,
    mels: int = 32,
    frames: int = 32,
    seconds: float = 1.0,
    range_db: float = 60.0,
) -> Float[np.ndarray, "mels frames"]:
    """Log-mel spectrogram of the first `seconds`, relative to its own loudest point, in [0, 1].

    `1 + (10 log10 E - max 10 log10 E) / range_db`, clipped at 0, where E is the mel energy: 1 is the loudest band of
    the loudest frame and 0 everything `range_db` or more below it (and digital silence). Frames are `seconds / frames`
    apart and twice as long; shorter waves are padded with silence, longer ones cut.
    """
    hop = max(1, round(seconds * rate / frames))
    window = 2 * hop
    fft = 1 << (max(window, 512) - 1).bit_length()
    padded = np.zeros((frames - 1) * hop + window, np.float32)
    padded[: len(wave)] = np.asarray(wave, np.float32)[: len(padded)]
    decibel = 10 * np.log10(frame_powers(padded, window, hop, fft) @ mel_filters(rate, fft, mels) + 1e-30)
    loudest = decibel.max()
    if loudest <= -290:  # nothing but zeros: no loudest point to relate to
        return np.zeros((mels, frames), np.float32)
    return np.clip(1 + (decibel - loudest) / range_db, 0, 1).T.astype(np.float32)


def even_frames(samples: int, frames: int) -> tuple[int, int]:
    """Window and overlap with which exactly `frames` frames fit: the shortest window, and for it the smallest overlap.

    Frames fit when `frames L - (frames - 1) o <= samples < (frames + 1) L - frames o` (window L, overlap o).

    Raises:
        RecipeError: a wave too short for that many frames.
    """
    for window in range(max(1, -(-samples // (frames + 1))), samples + 1):
        hop = min(window, (samples - window) // max(frames - 1, 1))  # the largest step for which the last frame fits
        if hop >= 1 and window + frames * hop > samples:
            return window, window - hop
    raise RecipeError(f"A wave of {samples} samples is too short for a spectrogram of {frames} frames.")


def power_spectrogram(
    wave: Float[np.ndarray, " samples"], rate: int, *, size: int = 112
) -> Float[np.ndarray, "size size"]:
    """The square spectrogram of the published AV-MNIST: `size` frequencies x `size` frames of power density (1/Hz).

    Frames without taper, each with its mean removed, of the length given by `even_frames`; zero-padded transform of
    2 size - 1 samples; one-sided, so every bin but the first counts twice. A wave longer than what frames of that many
    samples can cover is cut. Same as `scipy.signal.spectrogram(wave, rate, "boxcar", L, o, 2 size - 1)`.
    """
    fft = 2 * size - 1
    wave = np.asarray(wave, np.float32)[: fft * size]
    window, overlap = even_frames(len(wave), size)
    powers = frame_powers(wave, window, window - overlap, fft, taper="boxcar", detrend=True)
    powers[:, 1:] *= 2
    return powers.T / np.float32(rate * window)
