from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.utd_mhad import HIP_CENTRE, utd_mhad
from limbeck.errors import RecipeError

ACTIONS, SUBJECTS = 3, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    action, subject = (grid.ravel() for grid in np.meshgrid(range(ACTIONS), range(1, SUBJECTS + 1), indexing="ij"))
    rows = len(action)
    np.savez(
        tmp_path / "labels.npz",
        action=action.astype(np.uint8),
        subject=subject.astype(np.uint8),
        trial=np.ones(rows, np.uint8),
        action_names=np.array(["wave", "clap", "sit"]),
    )
    np.savez(tmp_path / "depth16x40x40.npz", depth=draw.integers(0, 256, (rows, 16, 40, 40), np.uint8))
    np.savez(
        tmp_path / "fixed_length.npz",
        skeleton=draw.normal(size=(rows, 32, 20, 3)).astype(np.float16),
        inertial=(draw.normal(size=(rows, 64, 6)) * [1, 1, 1, 90, 90, 90] + 5).astype(np.float16),
    )
    return tmp_path


def test_subjects_do_not_cross_splits(folder: Path) -> None:
    data = utd_mhad(folder, validation_subject=5)
    subjects = {name: {int(row.split("subject ")[1][0]) for row in split.ids} for name, split in data.splits.items()}
    assert subjects == {"train": {1, 3, 7}, "validation": {5}, "test": {2, 4, 6, 8}}
    numbers = torch.cat([split.tensors["id"] for split in data.splits.values()])
    assert torch.equal(numbers, torch.arange(ACTIONS * SUBJECTS))


def test_rows_keep_their_action_and_values(folder: Path) -> None:
    data = utd_mhad(folder)
    depth = np.load(folder / "depth16x40x40.npz")["depth"]
    with np.load(folder / "fixed_length.npz") as stored:
        skeleton = stored["skeleton"].astype(np.float32)
    for split in data.splits.values():
        for row, name in zip(split, split.ids):
            action = data.labels["label"].index(name.split()[0])
            place = action * SUBJECTS + int(name.split()[2]) - 1
            assert row["label"] == action
            np.testing.assert_array_equal((row["depth"] * 255).round().numpy(), depth[place])
            hip = skeleton[place, 0, HIP_CENTRE]
            for joint in (0, HIP_CENTRE, 19):
                moved = row["skeleton"][3 * joint : 3 * joint + 3].T.numpy()
                np.testing.assert_allclose(moved, skeleton[place, :, joint] - hip, atol=1e-6)


def test_inertial_is_standard_over_the_training_rows_only(folder: Path) -> None:
    data = utd_mhad(folder)
    train = data["train"].tensors["inertial"]
    torch.testing.assert_close(train.mean(dim=(0, 2)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.std(dim=(0, 2), correction=0), torch.ones(6), atol=1e-4, rtol=0)
    assert data["test"].tensors["inertial"].mean(dim=(0, 2)).abs().max() > 1e-4


def test_shapes_and_the_name_of_the_target(folder: Path) -> None:
    data = utd_mhad(folder, target="action")
    assert {name: tuple(tensor.shape[1:]) for name, tensor in data["train"].tensors.items()} == {
        "depth": (16, 40, 40),
        "skeleton": (60, 32),
        "inertial": (6, 64),
        "action": (),
        "id": (),
    }
    assert data.labels == {"action": ["wave", "clap", "sit"]}
    assert data["train"].tensors["depth"].max() <= 1


def test_wrong_folders_and_subjects_are_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no labels\.npz. Give path="):
        utd_mhad(folder / "nowhere")
    with pytest.raises(RecipeError, match="training subjects 1, 3, 5, 7; given: 2"):
        utd_mhad(folder, validation_subject=2)
    np.savez(folder / "fixed_length.npz", skeleton=np.zeros(1))
    with pytest.raises(RecipeError, match="lacks inertial"):
        utd_mhad(folder)
