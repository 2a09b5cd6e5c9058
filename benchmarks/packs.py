"""The public research sets that the benchmarks read, as Limbeck data: `benchmarks.packs:mfeat` with `args: {path: FOLDER}`.

Each function takes the folder (or file) that the set lies in and a seed that draws the validation rows out of the
training rows; the test rows are always the official ones. Nothing here belongs to the package.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from limbeck.data.tensors import Data, TensorSplit

Columns = dict[str, np.ndarray]


def data_of(parts: Mapping[str, Columns], labels: list[str], source: str, **words: str) -> Data:
    """Splits in memory; row numbers run on from one split to the next."""
    splits, first = {}, 0
    for name, columns in parts.items():
        tensors = {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in columns.items()}
        splits[name] = TensorSplit(tensors, first)
        first += len(splits[name])
    return Data(splits, words | {"label": "the class"}, {"label": labels}, source=source)


def held_out(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask of `share` of the rows, the same share of every class."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(label), dtype=bool)
    for value in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == value))
        mask[rows[: max(1, round(share * len(rows)))]] = True
    return mask


def three(train: Columns, test: Columns, share: float, seed: int) -> dict[str, Columns]:
    """Train, validation (out of train) and test."""
    mask = held_out(train["label"], share, seed)
    return {
        "train": {key: values[~mask] for key, values in train.items()},
        "validation": {key: values[mask] for key, values in train.items()},
        "test": test,
    }


def scaled(train: np.ndarray, test: np.ndarray, axis: int | tuple[int, ...] = 0) -> tuple[np.ndarray, np.ndarray]:
    """Both with mean 0 and standard deviation 1 over the training rows."""
    mean, deviation = train.mean(axis, keepdims=True), train.std(axis, keepdims=True) + 1e-6
    return tuple(((x - mean) / deviation).astype(np.float32) for x in (train, test))  # type: ignore[return-value]


def mfeat(path: str, views: list[str] | None = None, seed: int = 0) -> Data:
    """2,000 handwritten numerals in several sets of features (UCI): by default `zernike` [47] and `morphological` [6]."""
    stored = np.load(Path(path) / "mfeat.npz")
    test = stored["is_test"]
    train_columns: Columns = {"label": stored["label"][~test].astype(np.int64)}
    test_columns: Columns = {"label": stored["label"][test].astype(np.int64)}
    views = views or ["zernike", "morphological"]
    for view in views:
        train_columns[view], test_columns[view] = scaled(stored[view][~test], stored[view][test])
    parts = three(train_columns, test_columns, 0.2, seed)
    return data_of(parts, [str(i) for i in range(10)], f"mfeat({path})", **{v: f"{v} features" for v in views})


def basic_motions(path: str, seed: int = 0) -> Data:
    """BasicMotions (UEA): `accelerometer` and `gyroscope` [3, 100] of four activities; 30 train, 10 validation, 40 test."""
    stored = np.load(Path(path) / "BasicMotions.npz")
    names = [str(name) for name in stored["class_names"]]
    columns: list[Columns] = [{}, {}]
    for name, channels in (("accelerometer", slice(0, 3)), ("gyroscope", slice(3, 6))):
        pair = scaled(stored["x_train"][:, channels], stored["x_test"][:, channels], (0, 2))
        columns[0][name], columns[1][name] = pair
    for side, label in zip(columns, (stored["y_train"], stored["y_test"])):
        side["label"] = (
            label.astype(np.int64) if label.dtype.kind in "iu" else np.array([names.index(str(v)) for v in label])
        )
    return data_of(
        three(*columns, 0.25, seed), names, f"basic_motions({path})", accelerometer="3 axes", gyroscope="3 axes"
    )


def nlvr(path: str, words: int = 150, orders: int = 3, seed: int = 0) -> Data:
    """NLVR: is the sentence true of the image? `image` [3, 25, 100], `text` [words] (which of the commonest words occur).

    The three box orders of a statement stay on one side of the split, so validation holds a fifth of the statements;
    `orders` of them are taken.
    """
    import pyarrow.parquet as pq

    rows = {split: pq.read_table(Path(path) / f"{split}.parquet").to_pylist() for split in ("train", "test")}
    rows["train"] = [row for row in rows["train"] if int(str(row["id"]).rsplit("-", 1)[1]) < orders]
    counts: dict[str, int] = {}
    for row in rows["train"]:
        for word in set(tokens(row["sentence"])):
            counts[word] = counts.get(word, 0) + 1
    kept = {word: i for i, word in enumerate(sorted(counts, key=lambda w: (-counts[w], w))[:words])}
    columns = {split: nlvr_columns(rows[split], kept) for split in rows}
    statement = np.array([str(row["id"]).rsplit("-", 1)[0] for row in rows["train"]])
    names = np.unique(statement)
    chosen = set(np.random.default_rng(seed).permutation(names)[: len(names) // 5].tolist())
    mask = np.array([name in chosen for name in statement])
    parts = {
        "train": {key: values[~mask] for key, values in columns["train"].items()},
        "validation": {key: values[mask] for key, values in columns["train"].items()},
        "test": columns["test"],
    }
    return data_of(
        parts, ["false", "true"], f"nlvr({path})", image="three boxes of objects", text="words of the sentence"
    )


def nlvr_columns(rows: list[dict[str, Any]], kept: Mapping[str, int]) -> Columns:
    images = np.stack([picture(row["image"], (100, 25)) for row in rows])
    text = np.zeros((len(rows), len(kept)), dtype=np.float32)
    for i, row in enumerate(rows):
        for word in tokens(row["sentence"]):
            if word in kept:
                text[i, kept[word]] = 1
    return {"image": images, "text": text, "label": np.array([int(row["label"]) for row in rows])}


def tokens(sentence: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", sentence.lower())


def picture(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB as float32 [3, height, width] in [0, 1]."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image.resize(size, Image.Resampling.BILINEAR) if size else image
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255


def cifar10(path: str, seed: int = 0, limit: int | None = None) -> Data:
    """12,000 images of CIFAR-10 [3, 32, 32], mean 0 and deviation 1 per channel; a tenth of the training rows validates."""
    stored = np.load(Path(path) / "cifar10_12k.npz")
    train, test = (stored[f"x_{part}"].transpose(0, 3, 1, 2).astype(np.float32) / 255 for part in ("train", "test"))
    train, test = scaled(train, test, (0, 2, 3))
    labels = {part: stored[f"y_{part}"].astype(np.int64) for part in ("train", "test")}
    parts = three(
        {"image": train[:limit], "label": labels["train"][:limit]}, {"image": test, "label": labels["test"]}, 0.1, seed
    )
    return data_of(parts, [str(name) for name in stored["class_names"]], f"cifar10({path})", image="colour photographs")


def camvid(path: str, size: tuple[int, int] = (60, 80), limit: int | None = None) -> Data:
    """CamVid (SegNet split): `image` [3, height, width] and `label` [height, width], 11 classes, -1 where unlabelled."""
    import pyarrow.parquet as pq

    parts: dict[str, Columns] = {}
    height, width = size
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        rows = pq.read_table(Path(path) / f"{file}.parquet").to_pylist()[:limit]
        masks = [Image.open(io.BytesIO(row["mask"])).resize((width, height), Image.Resampling.NEAREST) for row in rows]
        label = np.stack([np.asarray(mask, dtype=np.int64) for mask in masks])
        images = np.stack([picture(row["image"], (width, height)) for row in rows])
        parts[split] = {"image": (images - 0.4) / 0.3, "label": np.where(label == 11, -1, label)}
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    return data_of(parts, names, f"camvid({path})", image="frames of a drive")
