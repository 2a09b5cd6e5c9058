from __future__ import annotations

import gzip
import io
import tarfile
import urllib.error
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data import digit_files
from limbeck.data.av_mnist import av_mnist, by_label, degraded, leading_part, split_rows
from limbeck.data.digit_files import packed, read_mnist, read_recordings
from limbeck.errors import RecipeError

DRAW = np.random.default_rng(0)
SPEAKERS = ["jackson", "theo"]
MNIST = {
    "x_train": DRAW.integers(0, 256, (60, 28, 28), np.uint8),
    "y_train": np.tile(np.arange(10, dtype=np.uint8), 6),
    "x_test": DRAW.integers(0, 256, (20, 28, 28), np.uint8),
    "y_test": np.tile(np.arange(10, dtype=np.uint8), 2),
}


def wave_file(samples: np.ndarray, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def wave_files() -> dict[str, bytes]:
    """Every speaker says every digit in takes 0, 1 (training) and 40 (test), each time with another pitch."""
    files = {}
    for digit in range(10):
        for number, speaker in enumerate(SPEAKERS):
            for take in (0, 1, 40):
                time = np.arange(1500 + 100 * digit) / 8000
                pitch = 200 + 150 * digit + 40 * number + 15 * (take % 38)
                files[f"{digit}_{speaker}_{take}.wav"] = wave_file(8000 * np.sin(2 * np.pi * pitch * time))
    return files


def idx_file(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("av-mnist")
    np.savez(here / "mnist.npz", **MNIST)
    np.savez(here / "fsdd.npz", **packed(wave_files()))
    return here


def make(folder: Path, **options: object) -> dict:
    return av_mnist(folder, **{"speakers": None, **options}).splits  # type: ignore[arg-type]


def test_the_original_files_give_the_same_data(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "recordings").mkdir()
    for key, (name, _) in digit_files.MNIST_FILES.items():
        (tmp_path / "raw" / name).write_bytes(idx_file(MNIST[key]))
    for name, content in wave_files().items():
        (tmp_path / "recordings" / name).write_bytes(content)
    one, other = av_mnist(folder, speakers=SPEAKERS), av_mnist(tmp_path, speakers=SPEAKERS)
    assert one.fingerprint == other.fingerprint
    for key, array in read_mnist(tmp_path).items():
        np.testing.assert_array_equal(array, MNIST[key])


def test_recordings_come_sorted_by_digit_speaker_and_take(folder: Path) -> None:
    recordings = read_recordings(folder)
    assert recordings.names[:7] == [f"0_{who}_{take}" for who in SPEAKERS for take in (0, 1, 40)] + ["1_jackson_0"]
    assert [len(sound) for sound in recordings.waves] == [1500 + 100 * digit for digit in recordings.label]
    assert 0.2 < max(np.abs(sound).max() for sound in recordings.waves) < 0.25


def test_labels_take_the_recordings_of_their_digit_in_turn() -> None:
    spoken = np.array([3, 5, 3, 5, 3])
    labels = np.array([3, 3, 5, 3, 3, 5, 5])
    pool = np.array([0, 1, 2, 3])  # recording 4 belongs to the other file
    assert by_label(labels, pool, spoken).tolist() == [0, 2, 1, 0, 2, 3, 1]
    with pytest.raises(RecipeError, match="no recording of the digit 7"):
        by_label(np.array([7]), pool, spoken)


def test_sound_and_label_agree_in_every_row_and_files_share_no_recording(folder: Path) -> None:
    splits = make(folder, split="official")
    takes: dict[str, set[int]] = {}
    for name, split in splits.items():
        for row, label in zip(split.ids, split.tensors["label"].tolist()):
            spoken = row.split(" + ")[1]
            assert int(spoken[0]) == label
            takes.setdefault(name, set()).add(int(spoken.split("_")[2]))
    assert takes["test"] == {40}
    assert takes["train"] | takes["validation"] == {0, 1}
    clean = {name: s.tensors["audio"] for name, s in make(folder, split="official", image_energy=None).items()}
    first = {row.split(" + ")[1]: clean["test"][i] for i, row in enumerate(splits["test"].ids)}
    for i, row in enumerate(splits["test"].ids):
        assert torch.equal(clean["test"][i], first[row.split(" + ")[1]])


def test_leading_part_equals_the_slow_formula_and_has_no_mean() -> None:
    flat = (DRAW.normal(size=(200, 12)) * np.linspace(3, 0.5, 12) + 2).astype(np.float32)
    centred = flat - flat.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    shares = np.cumsum(singular**2) / np.sum(singular**2)
    for n in (1, 3, 7):
        slow = sum(np.outer(centred @ axes[k], axes[k]) for k in range(n))
        np.testing.assert_allclose(leading_part(flat, components=n), slow, atol=1e-4)
        np.testing.assert_allclose(leading_part(flat, components=n).mean(axis=0), 0, atol=1e-5)
        just_above, just_below = float(shares[n - 1]) + 1e-4, float(shares[n - 1]) - 1e-4
        np.testing.assert_allclose(leading_part(flat, just_above), slow, atol=1e-4)  # n components: not more than asked
        if n > 1:
            assert np.linalg.matrix_rank(leading_part(flat, just_below), tol=1e-2) == n - 1


def test_energy_is_a_strict_bound_on_the_kept_variance() -> None:
    flat = DRAW.normal(size=(500, 20)).astype(np.float32)
    for energy in (0.25, 0.5, 0.9):
        share = leading_part(flat, energy).var(axis=0).sum() / flat.var(axis=0).sum()
        assert share <= energy
        assert share > energy - 0.09  # one more component would pass it


def test_every_image_uses_its_whole_range() -> None:
    for options in ({"energy": 0.25}, {"components": 9}, {}):
        images = degraded(MNIST["x_train"], **options)
        assert images.shape == (60, 28, 28)
        np.testing.assert_array_equal(images.min(axis=(1, 2)), 0)
        np.testing.assert_allclose(images.max(axis=(1, 2)), 1, atol=1e-6)
    black = degraded(np.zeros((2, 4, 4), np.uint8))
    assert not black.any()


def test_images_of_the_two_files_are_degraded_apart(folder: Path) -> None:
    split = make(folder, split="official")["test"]
    np.testing.assert_array_equal(split.tensors["image"][:, 0].numpy(), degraded(MNIST["x_test"], 0.25))


@pytest.mark.parametrize("kind", ["permutation", "official"])
def test_rows_are_in_one_split_each_and_a_limit_keeps_the_proportions(kind: str) -> None:
    for limit, total in ((None, 70), (35, 35)):
        rows = split_rows([60, 10], kind, limit, seed=1)
        every = np.concatenate(list(rows.values()))
        assert len(set(every.tolist())) == len(every) == total
        shares = {name: len(index) / total for name, index in rows.items()}
        wanted = (0.6, 0.2, 0.2) if kind == "permutation" else (5 / 7, 1 / 7, 1 / 7)
        assert list(shares.values()) == pytest.approx(wanted)
    if kind == "official":
        assert set(rows["test"].tolist()) <= set(range(60, 70))
        assert max(rows["train"].max(), rows["validation"].max()) < 60
    again, other = split_rows([60, 10], kind, None, seed=1), split_rows([60, 10], kind, None, seed=2)
    assert np.array_equal(again["train"], split_rows([60, 10], kind, None, seed=1)["train"])
    assert not np.array_equal(again["train"], other["train"])


def test_shapes_and_seeds(folder: Path) -> None:
    batch = make(folder, size=16)["train"].__getitems__([0, 1])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "image": (2, 1, 28, 28),
        "audio": (2, 1, 16, 16),
        "label": (2,),
        "id": (2,),
    }
    assert make(folder, spectrogram="power", limit=10)["train"].tensors["audio"].shape[1:] == (1, 112, 112)
    quiet, noisy, again = (av_mnist(folder, speakers=None, audio_noise=level) for level in (0, 0.1, 0.1))
    assert noisy.fingerprint == again.fingerprint != quiet.fingerprint
    assert noisy["train"].ids == quiet["train"].ids
    assert torch.equal(noisy["train"].tensors["image"], quiet["train"].tensors["image"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"spectrogram": "log_mel"}, "Did you mean 'log-mel'"),
        ({"split": "offical"}, "Did you mean 'official'"),
        ({"speakers": ["teo"]}, "Did you mean 'theo'"),
        ({"audio_noise": -1}, "standard deviation"),
        ({"limit": 5}, "10 to 80"),
        ({"image_energy": 1.5}, "between 0 and 1"),
        ({"image_energy": 0.0001}, "the first alone holds"),
        ({"components": 1000}, "1 to 784"),
    ],
)
def test_impossible_wishes_are_refused(folder: Path, options: dict, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        make(folder, **options)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no folder"):
        av_mnist(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match=r"neither mnist\.npz nor MNIST's train-images"):
        av_mnist(tmp_path)
    np.savez(tmp_path / "mnist.npz", **MNIST)
    with pytest.raises(RecipeError, match=r"neither fsdd\.npz nor FSDD's recordings"):
        av_mnist(tmp_path)
    np.savez(tmp_path / "fsdd.npz", wave=np.zeros(3))
    with pytest.raises(RecipeError, match="lacks offsets, label"):
        av_mnist(tmp_path)


def test_recordings_of_another_kind_are_refused() -> None:
    with pytest.raises(RecipeError, match="different sampling rates"):
        packed({"0_a_0.wav": wave_file(np.ones(5)), "0_a_1.wav": wave_file(np.ones(5), 16000)})


def test_without_network_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(RecipeError, match=r"no route.*path=FOLDER"):
        av_mnist()
    assert not list(tmp_path.rglob("*.npz"))


def test_what_was_fetched_is_checked_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    served = {name: idx_file(MNIST[key]) for key, (name, _) in digit_files.MNIST_FILES.items()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as out:
        for name, content in {**wave_files(), "README.md": b"text"}.items():
            member = tarfile.TarInfo(f"free-spoken-digit-dataset/recordings/{name}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    served[digit_files.SPEECH_SOURCE.rpartition("/")[2]] = archive.getvalue()
    asked = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(served[url.rpartition("/")[2]])

    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(RecipeError, match="another file than the published one"):
        av_mnist()
    monkeypatch.setattr(
        digit_files, "MNIST_FILES", {key: (name, None) for key, (name, _) in digit_files.MNIST_FILES.items()}
    )
    asked.clear()
    fetched = av_mnist(speakers=None)
    assert len(asked) == 5
    assert fetched.fingerprint == av_mnist(speakers=None).fingerprint == av_mnist(folder, speakers=None).fingerprint
    assert len(asked) == 5
    assert sorted(file.name for file in (tmp_path / "av-mnist").iterdir()) == ["fsdd.npz", "mnist.npz"]
