from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.spectrograms import even_frames, frame_powers, log_mel, mel_filters, power_spectrogram
from limbeck.errors import RecipeError

RATE = 8000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def test_frame_powers_equal_the_slow_transform() -> None:
    wave = np.random.default_rng(0).normal(size=50).astype(np.float32)
    powers = frame_powers(wave, 16, 5, 32)
    assert powers.shape == (1 + (50 - 16) // 5, 17)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(16) / 16)
    for frame in range(len(powers)):
        for k in range(17):
            waves = np.exp(-2j * np.pi * k * np.arange(16) / 32)
            assert powers[frame, k] == pytest.approx(abs(np.sum(wave[5 * frame :][:16] * taper * waves)) ** 2, rel=1e-4)


@pytest.mark.parametrize("hertz", [200, 700, 2500])
def test_a_tone_is_loudest_in_the_band_it_lies_in(hertz: float) -> None:
    loudest = log_mel(tone(hertz), RATE).mean(axis=1).argmax()
    filters = mel_filters(RATE, 512, 32)
    assert filters[round(hertz * 512 / RATE)].argmax() == loudest


def test_mel_filters_are_triangles_that_share_their_edges() -> None:
    filters = mel_filters(RATE, 4096, 20)
    inner = filters[np.abs(filters).sum(axis=1) > 0]
    between = inner[inner[:, 0].argmax() : inner[:, -1].argmax()]
    np.testing.assert_allclose(between.sum(axis=1), 1, atol=1e-5)  # one falls as the next rises
    assert filters.max() <= 1
    with pytest.raises(RecipeError, match="too many"):
        mel_filters(RATE, 64, 40)


def test_log_mel_is_relative_to_its_loudest_point() -> None:
    wave = tone(500) * np.linspace(0, 1, RATE, dtype=np.float32)
    spectrogram = log_mel(wave, RATE, mels=24, frames=20)
    assert spectrogram.shape == (24, 20)
    assert spectrogram.max() == 1
    assert spectrogram.min() >= 0
    np.testing.assert_allclose(log_mel(100 * wave, RATE, mels=24, frames=20), spectrogram, atol=1e-4)
    quieter = log_mel(np.concatenate([tone(500, 0.5), 0.1 * tone(500, 0.5)]), RATE)  # a tenth of the amplitude: -20 dB
    assert quieter[:, 24].max() == pytest.approx(1 - 20 / 60, abs=0.01)


def test_short_waves_are_padded_long_ones_cut_and_silence_is_zero() -> None:
    short = log_mel(tone(500, 0.25), RATE)
    assert short[:, 9:].max() == 0
    assert short[:, :8].max() == 1
    long = np.concatenate([tone(500), 9 * tone(2000, 2)])
    np.testing.assert_array_equal(log_mel(long, RATE, seconds=0.9), log_mel(long[: RATE + 100], RATE, seconds=0.9))
    assert not log_mel(np.zeros(100), RATE).any()


@given(samples=st.integers(30, 900), frames=st.integers(2, 30))
@settings(max_examples=60, deadline=None)
def test_even_frames_equals_trying_all_windows_and_overlaps(samples: int, frames: int) -> None:
    tried = [
        (window, overlap)
        for window in range(1, samples + 1)
        for overlap in range(window)
        if (frames + 1) * window - frames * overlap > samples >= frames * window - (frames - 1) * overlap
    ]
    assert even_frames(samples, frames) == tried[0]


def test_even_frames_needs_enough_samples() -> None:
    with pytest.raises(RecipeError, match="too short for a spectrogram of 112 frames"):
        even_frames(100, 112)


@pytest.mark.parametrize("samples", [1148, 3400, 18262, 40000])
def test_the_published_spectrogram_is_square_and_equals_scipy(samples: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    wave = np.random.default_rng(1).normal(size=samples).astype(np.float32) + 0.3
    spectrogram = power_spectrogram(wave, RATE)
    assert spectrogram.shape == (112, 112)
    wave = wave[: 223 * 112]
    window, overlap = even_frames(len(wave), 112)
    _, _, expected = signal.spectrogram(wave, RATE, window="boxcar", nperseg=window, noverlap=overlap, nfft=223)
    np.testing.assert_allclose(spectrogram, expected, rtol=2e-3, atol=1e-9)
