"""`utd-mhad`: 27 human actions seen by a depth camera, as a skeleton, and felt by a sensor on the body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from limbeck.data.digit_files import arrays_of
from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError

FILES = {
    "labels.npz": ["action", "subject", "trial", "action_names"],
    "depth16x40x40.npz": ["depth"],
    "fixed_length.npz": ["skeleton", "inertial"],
}
HIP_CENTRE = 3  # joint 4 of the Kinect skeleton: the root


def utd_mhad(path: str | Path, *, validation_subject: int = 7, target: str = "label") -> Data:
    """861 recordings in three modalities: columns `depth`, `skeleton`, `inertial` and the action, `label`.

    The cross-subject split of Chen, Jafari & Kehtarnavaz (ICIP 2015): subjects with odd numbers train, those with even
    numbers test. One training subject is held out for validation, so that nothing is ever chosen on the test subjects.

    Args:
        path: folder with labels.npz (action, subject, trial, action_names), depth16x40x40.npz (uint8, steps of 16 mm,
            0 = no reading) and fixed_length.npz (skeleton [n, 32, 20, 3] in metres, inertial [n, 64, 6] in g and deg/s).
        validation_subject: 1, 3, 5 or 7.
        target: the name that the column of actions gets.

    Returns:
        depth [16 frames, 40, 40] in [0, 1]; skeleton [60, 32 frames]: 20 joints x (x, y, z) in metres from where the hip
        centre was in the first frame; inertial [6, 64 steps]: acceleration and rotation, each of mean 0 and standard
        deviation 1 over the training rows.

    Raises:
        RecipeError: a missing file or array, or a validation subject that is not among the training subjects.
    """
    if validation_subject not in (1, 3, 5, 7):
        raise RecipeError(
            f"validation_subject is one of the training subjects 1, 3, 5, 7; given: {validation_subject}."
        )
    folder = Path(path)
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise RecipeError(
            f"utd-mhad reads {', '.join(FILES)} from a folder; '{folder}' has no {missing[0]}. Give path=."
        )
    stored: dict[str, np.ndarray] = {}
    for name, keys in FILES.items():
        stored |= arrays_of(folder / name, keys)
    subject, action = stored["subject"].astype(int), stored["action"].astype(np.int64)
    rows = {
        "train": np.flatnonzero((subject % 2 == 1) & (subject != validation_subject)),
        "validation": np.flatnonzero(subject == validation_subject),
        "test": np.flatnonzero(subject % 2 == 0),
    }
    skeleton = stored["skeleton"].astype(np.float32)
    skeleton = (skeleton - skeleton[:, :1, HIP_CENTRE : HIP_CENTRE + 1]).reshape(*skeleton.shape[:2], -1)
    inertial = stored["inertial"].astype(np.float32)
    seen = inertial[rows["train"]]
    inertial = (inertial - seen.mean(axis=(0, 1))) / seen.std(axis=(0, 1))
    columns: dict[str, np.ndarray] = {
        "depth": stored["depth"].astype(np.float32) / 255,
        "skeleton": np.ascontiguousarray(skeleton.swapaxes(1, 2)),
        "inertial": np.ascontiguousarray(inertial.swapaxes(1, 2)),
        target: action,
    }
    names = [str(name) for name in stored["action_names"]]
    said = [f"{names[a]} subject {s} trial {t}" for a, s, t in zip(action, subject, stored["trial"])]
    splits, first_id = {}, 0
    for split, index in rows.items():
        tensors = {key: torch.from_numpy(value[index]) for key, value in columns.items()}
        splits[split] = TensorSplit(tensors, first_id, [said[row] for row in index])
        first_id += len(index)
    return Data(
        splits=splits,
        columns={
            "depth": "depth video, 16 frames",
            "skeleton": "20 joints in metres, 32 frames",
            "inertial": "accelerometer and gyroscope, 64 steps",
            target: "the action",
        },
        labels={target: names},
        source=f"limbeck.data.utd_mhad:utd_mhad({folder}, validation_subject={validation_subject})",
    )
