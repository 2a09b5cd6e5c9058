"""Samples as pictures that live inside the page: images as they are, sounds as spectrograms, both as PNG data URIs."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import torch
from torch import Tensor

LARGEST = 112
# dark blue, violet, ember, pale yellow: even steps of lightness, so that it also reads in grey
_HEAT = np.array([[8, 10, 34], [62, 24, 106], [140, 41, 99], [214, 79, 66], [250, 158, 59], [250, 244, 190]], float)


def is_sound(column: str, values: Tensor) -> bool:
    """Whether a column is shown as a spectrogram: it is called one, or is a plane of values that are no grey levels."""
    if re.search(r"audio|sound|speech|wave|mel|spectro", column.lower()):
        return True
    return values.shape[0] == 1 and bool((values.min() < -0.01) | (values.max() > 1.01))


def picture(values: Tensor) -> str:
    """A data URI of an image [channels, height, width] in [0, 1]; other ranges are stretched to it."""
    planes = _finite(values)
    if planes.min() < -0.01 or planes.max() > 1.01:
        planes = _stretched(planes)
    planes = planes if len(planes) in (1, 3) else planes[:3] if len(planes) > 3 else planes[:1]
    return _png(planes.permute(1, 2, 0).mul(255).round().clamp(0, 255).to(torch.uint8).numpy())


def spectrogram(values: Tensor) -> str:
    """A data URI of log-mel values [1, mels, frames]: time to the right, low sounds at the bottom, loud is bright."""
    plane = _stretched(_finite(values))[0].flip(0).numpy()
    places = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(plane, places, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    return _png(colours.round().astype(np.uint8))


def _finite(values: Tensor) -> Tensor:
    planes = values.detach().float()
    planes = planes[None] if planes.dim() == 2 else planes
    return planes.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0)


def _stretched(planes: Tensor) -> Tensor:
    low, high = planes.min(), planes.max()
    return (planes - low) / (high - low).clamp(min=1e-12)


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
