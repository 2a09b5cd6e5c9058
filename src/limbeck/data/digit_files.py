"""MNIST and the Free Spoken Digit Dataset: read from a folder, in packed or original form, or fetched."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.errors import RecipeError

MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {  # the names of the original files, and their md5 as published with torchvision
    "x_train": ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "y_train": ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
    "x_test": ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
    "y_test": ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
}
SPEECH_SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.9.tar.gz"


@dataclass
class Recordings:
    """Spoken digits: one wave per recording (float32 in [-1, 1]), with digit, speaker and take; sorted by name."""

    waves: list[np.ndarray]
    label: np.ndarray
    speaker: np.ndarray
    take: np.ndarray
    rate: int

    @property
    def names(self) -> list[str]:
        return [f"{digit}_{who}_{take}" for digit, who, take in zip(self.label, self.speaker, self.take)]


def folder_of(path: str | Path | None) -> Path:
    """The folder to read from: the given one, or the cache, filled from the public sources when it is empty.

    The cache is `$LIMBECK_CACHE`, or else `~/.cache/limbeck`.

    Raises:
        RecipeError: the given folder does not exist, or nothing can be fetched.
    """
    if path is not None:
        if not Path(path).is_dir():
            raise RecipeError(f"There is no folder '{path}'. av-mnist reads MNIST and FSDD from a folder, path=FOLDER.")
        return Path(path)
    cache = Path(os.environ.get("LIMBECK_CACHE", Path.home() / ".cache" / "limbeck")) / "av-mnist"
    if not (cache / "mnist.npz").exists():
        arrays = {key: idx(fetch(MNIST_SOURCE + name, md5)) for key, (name, md5) in MNIST_FILES.items()}
        save(cache / "mnist.npz", arrays)
    if not (cache / "fsdd.npz").exists():
        with tarfile.open(fileobj=io.BytesIO(fetch(SPEECH_SOURCE))) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and "/recordings/" in m.name]
            files = {Path(m.name).name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
        save(cache / "fsdd.npz", packed({name: content for name, content in files.items() if name.endswith(".wav")}))
    return cache


def fetch(url: str, md5: str | None = None) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise RecipeError(
            f"av-mnist is made of MNIST and FSDD, and {url} could not be fetched ({error}). Give a folder that holds "
            "mnist.npz and fsdd.npz, or MNIST's four .gz files and FSDD's recordings: path=FOLDER."
        ) from error
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise RecipeError(
            f"{url} gave another file than the published one (md5 is not {md5}). Give yours: path=FOLDER."
        )
    return content


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Written aside and renamed, so that a file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(aside, **arrays)  # type: ignore[arg-type]
    aside.replace(file)


def read_mnist(folder: Path) -> dict[str, np.ndarray]:
    """x_train [60000, 28, 28] and x_test [10000, 28, 28] uint8, y_train and y_test: `mnist.npz` or the original files.

    Raises:
        RecipeError: neither is there, or the packed file lacks an array.
    """
    if (folder / "mnist.npz").exists():
        return arrays_of(folder / "mnist.npz", list(MNIST_FILES))
    found: dict[str, np.ndarray] = {}
    for key, (name, _) in MNIST_FILES.items():
        files = sorted(folder.rglob(name))
        if not files:
            raise RecipeError(
                f"'{folder}' holds neither mnist.npz nor MNIST's {name}. Give the folder with them: path=."
            )
        found[key] = idx(files[0].read_bytes())
    return found


def read_recordings(folder: Path) -> Recordings:
    """FSDD from `fsdd.npz`, or from its wave files (`7_jackson_32.wav`) anywhere below the folder.

    Raises:
        RecipeError: neither is there, or the packed file lacks an array.
    """
    if (folder / "fsdd.npz").exists():
        keys = ["wave", "offsets", "label", "speaker", "speaker_names", "take", "sample_rate"]
        stored = arrays_of(folder / "fsdd.npz", keys)
    else:
        files = {file.name: file.read_bytes() for file in sorted(folder.rglob("[0-9]_*_*.wav"))}
        if not files:
            raise RecipeError(f"'{folder}' holds neither fsdd.npz nor FSDD's recordings (0_jackson_0.wav, ...).")
        stored = packed(files)
    speaker = stored["speaker_names"][stored["speaker"]]
    order = np.lexsort((stored["take"], speaker, stored["label"]))
    ends = stored["offsets"]
    waves = [stored["wave"][ends[i] : ends[i + 1]].astype(np.float32) / 32768 for i in order]
    return Recordings(
        waves,
        stored["label"][order].astype(np.int64),
        speaker[order],
        stored["take"][order],
        int(stored["sample_rate"]),
    )


def arrays_of(file: Path, keys: list[str]) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        missing = [key for key in keys if key not in stored]
        if missing:
            raise RecipeError(f"'{file}' lacks {', '.join(missing)}; it needs the arrays {', '.join(keys)}.")
        return {key: stored[key] for key in keys}


def idx(content: bytes) -> np.ndarray:
    """MNIST's own format: two zero bytes, type (8: uint8), number of dimensions, sizes as big-endian int32, values."""
    raw = gzip.decompress(content)
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def packed(files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Wave files by name -> the arrays of `fsdd.npz`: all samples one after another, with offsets.

    Raises:
        RecipeError: a file that is not 16-bit mono, or not at the sampling rate of the others.
    """
    waves, labels, speakers, takes, rates = [], [], [], [], set()
    for name, content in sorted(files.items()):
        with wave.open(io.BytesIO(content)) as sound:
            if (sound.getnchannels(), sound.getsampwidth()) != (1, 2):
                raise RecipeError(f"{name} is not a 16-bit mono recording, as all of FSDD are.")
            rates.add(sound.getframerate())
            waves.append(np.frombuffer(sound.readframes(sound.getnframes()), "<i2"))
        digit, speaker, take = name.removesuffix(".wav").split("_")
        labels.append(int(digit))
        speakers.append(speaker)
        takes.append(int(take))
    if len(rates) != 1:
        raise RecipeError(f"The recordings have different sampling rates ({sorted(rates)} Hz); FSDD has 8000 Hz.")
    names, numbers = np.unique(speakers, return_inverse=True)
    return {
        "wave": np.concatenate(waves),
        "offsets": np.concatenate([[0], np.cumsum([len(w) for w in waves])]),
        "label": np.array(labels, np.uint8),
        "speaker": numbers.astype(np.uint8),
        "speaker_names": names,
        "take": np.array(takes, np.uint8),
        "sample_rate": np.array(rates.pop()),
    }
