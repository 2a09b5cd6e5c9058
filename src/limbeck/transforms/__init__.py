"""What a view does to its columns before a model sees them: leave modalities out, add noise, mask, augment.

A transform maps tensors by column to tensors by column and never changes what it is given. Random ones act only when
they are given seeds, one per sample (in training, the column `view_seed`), so evaluation sees the data as they are;
with `always` they act there too, on seeds made of the samples' ids. What a sample is given depends on its seed, the
transform's kind, the column and `salt`, never on the rest of the batch: a teacher and a student with equal salts see
the same draw (a consistent view), with different salts independent ones. Two of a kind on one column of one view need
different salts.
"""

from __future__ import annotations

from typing import Any

from limbeck.choices import choose
from limbeck.transforms.augmentation import Apply
from limbeck.transforms.base import KNOWN, RandomTransform, Transform
from limbeck.transforms.corruption import Noise, RandomMask
from limbeck.transforms.modalities import ModalityDropout, Subset
from limbeck.transforms.preparation import Documents, Standardise, Tokenise

__all__ = ["Apply", "ModalityDropout", "Noise", "RandomMask", "RandomTransform", "Subset", "Transform", "to_transform"]

KNOWN |= {
    "subset": Subset,
    "modality-dropout": ModalityDropout,
    "noise": Noise,
    "random-mask": RandomMask,
    "apply": Apply,
    "standardise": Standardise,
    "tokenise": Tokenise,
    "documents": Documents,
}


def to_transform(x: Any) -> Transform:
    """A transform out of a transform, a name, or `{use: noise, std: 0.1}`.

    Raises:
        RecipeError: an unknown name or option, or a value that does not fit.
    """
    return choose(x, KNOWN, Transform, "transform")
