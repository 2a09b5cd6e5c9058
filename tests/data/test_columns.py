"""A cell becomes exactly the tensor that its column promises."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Pil

from limbeck.data import columns
from limbeck.data.column import CellError
from limbeck.data.columns import Array, Audio, Image, Label, Number, Text
from limbeck.errors import RecipeError


def png(picture: Pil.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_a_colour_picture_is_its_pixels_over_255(pixels: np.ndarray) -> None:
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(Image().decode(png(Pil.fromarray(pixels))), expected)
    assert torch.equal(Image().decode(pixels), expected)


def test_grey_palette_and_deep_pictures(tmp_path: Path) -> None:
    grey = np.array([[0, 51], [255, 102]], np.uint8)
    expected = torch.tensor([[[0, 0.2], [1, 0.4]]])
    Pil.fromarray(grey).save(tmp_path / "grey.png")
    assert torch.equal(Image().decode(tmp_path / "grey.png"), expected)
    assert torch.equal(Image(channels=3).decode(tmp_path / "grey.png"), expected.expand(3, 2, 2))

    palette = Pil.new("P", (1, 1), 0)
    palette.putpalette([255, 51, 0])
    assert torch.equal(Image().decode(png(palette)), torch.tensor([1, 0.2, 0]).view(3, 1, 1))

    deep = Pil.fromarray(np.array([[0, 13107], [65535, 1]], np.uint16))
    assert torch.equal(Image().decode(png(deep)), torch.tensor([[[0, 0.2], [1, 1 / 65535]]]))
    assert Image(size=4, channels=3).decode(png(deep)).shape == (3, 4, 4)


def test_transparency_is_kept_with_four_channels() -> None:
    picture = Pil.new("RGBA", (1, 1), (255, 0, 51, 102))
    assert torch.equal(Image(channels=4).decode(picture).flatten(), torch.tensor([1, 0, 0.2, 0.4]))
    assert torch.equal(Image().decode(picture).flatten(), torch.tensor([1, 0, 0.2]))


def test_size_is_height_and_width_and_keeps_a_flat_picture_flat() -> None:
    flat = np.full((7, 5), 51, np.uint8)
    assert torch.equal(Image(size=(3, 9)).decode(flat), torch.full((1, 3, 9), 0.2))


def test_stretch_takes_in_everything_and_crop_cuts_the_sides_evenly() -> None:
    wide = np.array([[0, 100, 200, 255]] * 2, np.uint8)
    assert torch.equal(Image(size=2, fit="crop").decode(wide), torch.tensor([[[100, 200], [100, 200]]]) / 255)
    stretched = Image(size=2).decode(wide)[0]
    assert stretched.shape == (2, 2)
    assert stretched[0, 0] < 100 / 255
    assert stretched[0, 1] > 200 / 255


def test_making_smaller_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    small = Image(size=4).decode(stripes)
    torch.testing.assert_close(small, torch.full((1, 4, 4), 0.5), atol=0.03, rtol=0)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    picture = Pil.fromarray(np.array([[10, 20, 30]], np.uint8))
    exif = Pil.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    assert Image().decode(tmp_path / "turned.png").shape == (1, 3, 1)


def test_pictures_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CellError, match="32-bit"):
        Image().decode(Pil.fromarray(np.ones((2, 2), np.float32)))
    with pytest.raises(CellError, match=r"a\.png is not there"):
        Image().decode(tmp_path / "a.png")
    with pytest.raises(CellError, match="is empty"):
        Image().decode("")


def test_a_waveform_is_read_mixed_and_cut(tmp_path: Path) -> None:
    left, right = np.array([0.5, -0.5, 0.25, 0]), np.array([0.0, 0.5, 0.25, 0.5])
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 8000, subtype="FLOAT")
    expected = torch.tensor([0.25, 0, 0.25, 0.25])
    assert torch.equal(Audio(rate=8000).decode(tmp_path / "a.wav"), expected)
    assert torch.equal(Audio(rate=8000, seconds=2 / 8000).decode(tmp_path / "a.wav"), expected[:2])
    longer = Audio(rate=8000, seconds=6 / 8000).decode((tmp_path / "a.wav").read_bytes())
    assert torch.equal(longer, torch.cat([expected, torch.zeros(2)]))


def test_audio_from_samples_and_nothing(tmp_path: Path) -> None:
    cell = {"array": np.ones(100), "sampling_rate": 1000}
    assert torch.equal(Audio(rate=1000).decode(cell), torch.ones(100))
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    with pytest.raises(CellError, match="no samples"):
        Audio(rate=8000).decode(tmp_path / "empty.wav")


def test_mels_give_one_channel_and_a_frame_per_hop() -> None:
    cell = {"array": np.zeros(100), "sampling_rate": 8000}
    spectrogram = Audio(rate=8000, seconds=1, mels=40, hop=0.02).decode(cell)
    assert spectrogram.shape == (1, 40, 51)
    torch.testing.assert_close(spectrogram, torch.full_like(spectrogram, math.log(1e-8)))


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6)))
def test_arrays_come_back_from_files_lists_and_csv(values: np.ndarray) -> None:
    expected = torch.from_numpy(values.astype(np.float32))
    assert torch.equal(Array().decode(values.tolist()), expected)
    assert torch.equal(Array().decode(json.dumps(values.tolist())), expected)


def test_array_types_shapes_and_faults(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.uint8).reshape(2, 3))
    read = Array(shape=[2, 3]).decode(tmp_path / "a.npy")
    assert torch.equal(read, torch.arange(6).reshape(2, 3))
    assert torch.equal(Array(shape=(2, 3)).decode([0, 1, 2, 3, 4, 5]), read)
    assert Array(shape=2).decode([1.0, 2.0]).dtype == torch.float32
    half = torch.ones(2, dtype=torch.float16)
    assert Array().decode(half) is half
    with pytest.raises(CellError, match=r"\[2, 3\], not \[3, 2\]"):
        Array(shape=(3, 2)).decode(tmp_path / "a.npy")
    with pytest.raises(CellError, match="2 values that are nan"):
        Array().decode([1.0, float("nan"), float("inf")])
    with pytest.raises(CellError, match="not numbers"):
        Array().decode(["a"])
    np.save(tmp_path / "code.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        Array().decode(tmp_path / "code.npy")


def test_text_stays_and_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("größer", encoding="utf-8")
    assert Text().decode(" as it is ") == " as it is "
    assert Text().decode([{"role": "user", "content": "hi"}]) == [{"role": "user", "content": "hi"}]
    assert Text().decode(5) == "5"
    assert Text().locate("a.txt", tmp_path) == "a.txt"
    column = Text(file=True)
    assert column.decode(column.locate("a.txt", tmp_path)) == "größer"
    with pytest.raises(CellError, match="is empty"):
        Text().decode(None)


def test_numbers() -> None:
    assert Number().decode("1.5") == torch.tensor(1.5)
    assert Number().decode(3).dtype == torch.float32
    for cell, why in [("", "is empty"), ("x", "'x', not a number"), ("nan", "not a finite")]:
        with pytest.raises(CellError, match=why):
            Number().decode(cell)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([2, 0], ("0", "1", "2")),
        (["2", "0", 1.0], ("0", "1", "2")),
        ([10, 9, 2], ("2", "9", "10")),
        ([0, 5000], ("0", "5000")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["no", None, "yes", "", float("nan")], ("no", "yes")),
        ([torch.tensor(1), np.int64(0)], ("0", "1")),
    ],
)
def test_classes_are_counted_or_sorted(cells: list[object], names: tuple[str, ...]) -> None:
    assert Label().fitted(cells).names == names


def test_a_label_is_its_place_or_its_number() -> None:
    column = Label(names=["cat", "dog"])
    assert column.fitted(["bird"]) == column
    assert [column.index(cell) for cell in ("dog", 1, "0", 1.0, " cat ")] == [1, 1, 0, 1, 0]
    assert column.decode("dog").dtype == torch.int64
    assert Label(names=[5, 7]).index(7) == 1
    for cell, why in [
        ("dgo", "unknown class. Did you mean 'dog'"),
        (2, "is 2, out of range: there are 2 classes, 0 to 1"),
        ("-1", "out of range"),
        (None, "is empty"),
    ]:
        with pytest.raises(CellError, match=why):
            column.index(cell)


def test_a_column_is_spelled_in_three_ways() -> None:
    assert columns.of("image") == columns.of({"use": "image"}) == Image()
    assert columns.of({"use": "image", "size": "28"}) == Image(size=28)
    same = Image(size=28)
    assert columns.of(same) is same
    assert columns.of(Image(size=28).spec()) == Image(size=28)
    assert Image(size=28).describe() == "image, size 28"


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("imge", "unknown kind of column 'imge'. Did you mean 'image'?"),
        ({"use": "image", "sise": 3}, "unknown key 'sise' of column 'image'. Did you mean 'size'?"),
        ({"use": "image", "size": "big"}, "column 'image': size: needed is a number of pixels.*given was 'big'"),
        ({"use": "audio", "rate": 0}, "rate: needed is a number of samples per second"),
        ({"use": "label", "names": ["a", "a"]}, "needed is a list of different names"),
        ({"size": 3}, "write its kind"),
        (7, "write its kind"),
    ],
)
def test_wrong_spellings_say_what_is_needed(choice: object, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        columns.of(choice)
