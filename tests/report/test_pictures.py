"""Samples as PNGs inside the page."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.report.pictures import LARGEST, is_sound, picture, spectrogram


def opened(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_grey_and_colour_are_kept_to_the_level():
    grey = torch.tensor([[[0.0, 1.0], [0.5, 0.2]]])
    assert opened(picture(grey)).tolist() == [[0, 255], [128, 51]]
    colour = torch.rand(3, 5, 4)
    assert np.abs(opened(picture(colour)) - colour.permute(1, 2, 0).numpy() * 255).max() <= 0.5


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels_is_a_picture(channels):
    assert opened(picture(torch.rand(channels, 6, 6))).shape[:2] == (6, 6)


def test_other_ranges_are_stretched_and_what_is_not_finite_is_dark():
    values = torch.tensor([[[-3.0, 5.0], [float("nan"), float("-inf")]]])
    assert opened(picture(values)).tolist() == [[0, 255], [96, 96]]
    assert opened(picture(torch.full((1, 2, 2), 7.0))).max() == 0


def test_spectrograms_have_low_sounds_below_and_loud_ones_bright():
    values = torch.zeros(1, 4, 3)
    values[0, 0] = 1.0  # the lowest band
    drawn = opened(spectrogram(values)).astype(int).sum(-1)
    assert drawn.shape == (4, 3)
    assert drawn[-1].min() > drawn[:-1].max()
    assert (opened(spectrogram(values)) == opened(spectrogram(100 * values - 60))).all()


def test_large_pictures_are_made_small():
    assert opened(picture(torch.rand(3, 400, 200))).shape == (LARGEST, LARGEST // 2, 3)


def test_what_is_a_sound():
    grey = torch.rand(1, 8, 8)
    assert is_sound("audio", grey)
    assert is_sound("log_mel", grey)
    assert not is_sound("image", grey)
    assert is_sound("second", 5 * grey - 9)
    assert not is_sound("photo", 5 * torch.rand(3, 8, 8) - 9)
