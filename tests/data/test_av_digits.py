from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch

from limbeck.data.av_digits import WORDS, av_digits, clips, image_rows, images, in_turn, mislabelled
from limbeck.errors import RecipeError

ASSET = files("limbeck.data") / "assets" / "spoken-digits.npz"


def small(**options: float) -> dict:
    return av_digits(**{"train": 120, "validation": 40, "test": 60, **options}).splits


def test_the_asset_is_small_and_tells_where_it_comes_from() -> None:
    assert len(ASSET.read_bytes()) <= 2_000_000
    note = (files("limbeck.data") / "assets" / "spoken-digits.md").read_text()
    assert "eSpeak NG 1.52.0" in note
    with np.load(str(ASSET)) as stored:
        assert str(stored["made_with"]).startswith("eSpeak NG 1.52.0")


def test_every_voice_says_every_digit_once_in_one_split() -> None:
    sounds = clips()
    timbres = {
        split: {name.split("+")[1] for name in sounds["voice"][sounds["split"] == split]} for split in image_rows()
    }
    assert not timbres["train"] & timbres["validation"]
    assert not timbres["train"] & timbres["test"]
    assert not timbres["validation"] & timbres["test"]
    spoken = set(zip(sounds["voice"].tolist(), sounds["label"].tolist()))
    assert len(spoken) == len(sounds["label"]) == 10 * len(set(sounds["voice"].tolist()))
    assert sounds["spectrogram"].min() == 0
    assert np.all(sounds["spectrogram"].reshape(5600, -1).max(axis=1) == 1)


def test_every_image_is_in_exactly_one_split() -> None:
    rows = np.concatenate(list(image_rows().values()))
    assert np.array_equal(np.sort(rows), np.arange(len(images()[0])))


def test_without_noise_a_pair_is_an_image_and_a_clip_of_its_digit_and_split() -> None:
    pixels, digits = images()
    sounds = clips()
    for name, split in small(image_noise=0, audio_noise=0, label_noise=0).items():
        rows = image_rows()[name]
        for image, audio, label in zip(*(split.tensors[column] for column in ("image", "audio", "label"))):
            drawn = rows[(pixels[rows] == image[0].numpy()).all(axis=(1, 2))]
            heard = (sounds["spectrogram"] == audio[0].numpy()).all(axis=(1, 2))
            assert label in digits[drawn]
            assert (name, int(label)) in set(zip(sounds["split"][heard], sounds["label"][heard].tolist()))


def test_names_tell_the_pair() -> None:
    split = small(label_noise=0)["test"]
    _, digits = images()
    for name, label in zip(split.ids, split.tensors["label"].tolist()):
        _, row, _, word, _, voice = name.split(" ")
        assert digits[int(row)] == label == WORDS.index(word)
        assert voice in clips()["voice"][clips()["split"] == "test"]


def test_a_seed_repeats_all_bits_and_another_gives_other_pairs() -> None:
    one, again, other = (av_digits(seed=s, train=50, validation=20, test=20) for s in (3, 3, 4))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one["test"].ids == again["test"].ids != other["test"].ids


def test_row_numbers_go_on_from_split_to_split() -> None:
    numbers = torch.cat([split.tensors["id"] for split in small().values()])
    assert torch.equal(numbers, torch.arange(220))


def test_noise_is_added_to_the_same_pairs_and_stays_in_range() -> None:
    clean, noisy = small(image_noise=0, audio_noise=0)["train"], small(image_noise=0.1, audio_noise=0.2)["train"]
    assert clean.ids == noisy.ids
    for column, level in (("image", 0.1), ("audio", 0.2)):
        before, after = clean.tensors[column], noisy.tensors[column]
        assert 0 <= after.min() <= after.max() <= 1
        middle = (before > 0.45) & (before < 0.55)  # far from the ends, where nothing is clipped
        assert (after - before)[middle].std().item() == pytest.approx(level, rel=0.15)
    half = small(image_noise=0.05, audio_noise=0)["train"].tensors["image"] - clean.tensors["image"]
    inside = (noisy.tensors["image"] > 0) & (noisy.tensors["image"] < 1)
    torch.testing.assert_close((2 * half)[inside], (noisy.tensors["image"] - clean.tensors["image"])[inside])


def test_only_training_labels_are_wrong_and_only_as_many_as_asked_for() -> None:
    right, some, all_wrong = (small(label_noise=share) for share in (0, 0.2, 1))
    wrong = (right["train"].tensors["label"] != some["train"].tensors["label"]).float().mean().item()
    assert wrong == pytest.approx(0.2, abs=0.1)
    assert not (right["train"].tensors["label"] == all_wrong["train"].tensors["label"]).any()
    for split in ("validation", "test"):
        assert torch.equal(right[split].tensors["label"], all_wrong[split].tensors["label"])
    labels = np.repeat(np.arange(10), 3000)
    moved = mislabelled(labels, 0.5, np.random.default_rng(0))
    shares = np.stack([np.bincount(moved[labels == d], minlength=10) / 3000 for d in range(10)])
    np.testing.assert_allclose(shares, np.where(np.eye(10), 0.5, 0.5 / 9), atol=0.04)


def test_taking_in_turn_uses_everything_equally_often() -> None:
    taken = in_turn(np.arange(7), 24, np.random.default_rng(0))
    counts = np.bincount(taken, minlength=7)
    assert counts.sum() == 24
    assert counts.max() - counts.min() <= 1
    assert sorted(taken[:7].tolist()) == list(range(7))
    assert len(in_turn(np.arange(7), 0, np.random.default_rng(0))) == 0


def test_shapes_and_description() -> None:
    data = av_digits(train=30, validation=10, test=10)
    batch = data["train"].__getitems__([0, 5])
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "image": ((2, 1, 8, 8), torch.float32),
        "audio": ((2, 1, 32, 32), torch.float32),
        "label": ((2,), torch.int64),
        "id": ((2,), torch.int64),
    }
    assert "20% of the training labels are wrong" in data.describe()
    assert data.labels["label"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_noise": -0.1}, "standard deviation"),
        ({"label_noise": 1.2}, "between 0 and 1"),
        ({"test": 0}, "at least one pair"),
    ],
)
def test_impossible_wishes_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        small(**options)
