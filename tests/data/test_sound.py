"""The spectrogram measures power: closed forms for tones, noise and silence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import sound
from limbeck.data.column import CellError
from limbeck.data.spectrograms import mel_filters


def tone(hertz: float, rate: int, seconds: float = 1.0, amplitude: float = 1.0) -> torch.Tensor:
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * hertz * time)).float()


def centres(mels: int, low: float, high: float) -> torch.Tensor:
    corners = torch.linspace(*(2595 * math.log10(1 + f / 700) for f in (low, high)), mels + 2, dtype=torch.float64)
    return (700 * (10 ** (corners / 2595) - 1))[1:-1]


def test_the_filter_bank_sums_to_one_between_its_outer_centres() -> None:
    rate, points, mels = 16000, 2048, 40
    sums = torch.from_numpy(mel_filters(rate, points, mels, 0.0)).sum(1)
    bins = torch.arange(points // 2 + 1) * rate / points
    inner = (bins >= centres(mels, 0, 8000)[0]) & (bins <= centres(mels, 0, 8000)[-1])
    torch.testing.assert_close(sums[inner], torch.ones(int(inner.sum())))


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 60), st.floats(0.05, 1.0))
def test_a_tone_peaks_in_its_band_and_bands_sum_to_half_its_squared_amplitude(band: int, amplitude: float) -> None:
    rate, mels = 16000, 64
    hertz = float(centres(mels, 0, rate / 2)[band])
    power = sound.log_mel(tone(hertz, rate, 0.3, amplitude), rate, mels, window=0.1).exp()[0, :, 10:-10]
    assert (power.argmax(0) == band).all()
    torch.testing.assert_close(power.sum(0), torch.full_like(power[0], amplitude**2 / 2), rtol=2e-3, atol=1e-4)


def test_noise_has_the_power_of_its_variance() -> None:
    noise = 0.3 * torch.randn(160000, generator=torch.Generator().manual_seed(0))
    power = sound.log_mel(noise, 16000, 80).exp()[0, :, 5:-5].sum(0)
    assert power.mean() == pytest.approx(0.09, rel=0.03)


def test_silence_is_the_floor_and_frames_are_counted() -> None:
    for samples in (1, 159, 160, 161, 4000):
        spectrogram = sound.log_mel(torch.zeros(samples), 16000, 40)
        assert spectrogram.shape == (1, 40, 1 + samples // 160)
        torch.testing.assert_close(spectrogram, torch.full_like(spectrogram, math.log(1e-8)))


def test_a_frame_is_centred_on_its_time() -> None:
    click = torch.zeros(16000)
    click[8000] = 1
    power = sound.log_mel(click, 16000, 40).exp()[0].sum(0)
    assert int(power.argmax()) == 50
    torch.testing.assert_close(power[49], power[51], rtol=1e-3, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 256), st.sampled_from([8000, 16000, 22050, 48000]))
def test_no_band_is_ever_silent(mels: int, rate: int) -> None:
    noise = torch.randn(rate // 4, generator=torch.Generator().manual_seed(1))
    assert (sound.log_mel(noise, rate, mels).exp().mean(-1) > 1e-6).all()


def test_bands_above_the_recording_are_refused() -> None:
    with pytest.raises(CellError, match="it ends at 4000 Hz"):
        sound.log_mel(torch.zeros(100), 8000, 40, low=4000)


@pytest.mark.parametrize(("old", "new"), [(8000, 16000), (44100, 16000), (16000, 8000)])
def test_resampling_keeps_a_tone(old: int, new: int) -> None:
    again = sound.resample(tone(440, old), old, new)
    assert again.dtype == torch.float32
    assert len(again) == math.ceil(old * new / old)
    middle = slice(new // 10, -new // 10)  # the filter sees silence beyond both ends
    torch.testing.assert_close(again[middle], tone(440, new)[middle], atol=5e-3, rtol=0)


def test_an_equal_rate_changes_nothing() -> None:
    wave = torch.randn(10)
    assert sound.resample(wave, 8000, 8000) is wave
