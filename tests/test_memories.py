"""Which entry of a memory an id means, and whole columns of a split."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import load_data
from limbeck.data.tensors import TensorSplit
from limbeck.errors import RecipeError
from limbeck.memories import Entries, columns


@given(ids=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=30, unique=True), data=st.data())
def test_every_id_means_its_place_in_the_split(ids, data):
    entries = Entries(torch.tensor(ids))
    asked = data.draw(st.lists(st.sampled_from(range(len(ids))), max_size=10))
    found = entries(torch.tensor([ids[i] for i in asked], dtype=torch.int64))
    assert found.tolist() == asked
    assert len(entries) == len(ids)


def test_an_id_of_other_rows_is_refused_by_name():
    entries = Entries(torch.tensor([5, 3, 9]))
    for strange in (4, 10, -1):
        with pytest.raises(RecipeError, match=rf"3 training rows.*not among them \(id {strange}\)"):
            entries(torch.tensor([5, strange]))


def test_no_checkpoint_holds_them_and_they_move_with_a_module():
    entries = Entries(torch.tensor([5, 3]))
    assert entries.state_dict() == {}
    assert [name for name, _ in entries.named_buffers()] == ["known", "order"]


class Unknown:
    """A split of another kind, which counts what is read."""

    def __init__(self, count):
        self.count, self.asked, self.ids = count, [], [str(i) for i in range(count)]

    def __len__(self):
        return self.count

    def __getitems__(self, rows):
        self.asked.append(len(rows))
        at = torch.tensor(rows)
        return {"id": 7 * at, "label": at % 3, "text": [str(r) for r in rows]}


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_columns_of_any_split_in_its_order(count):
    split = Unknown(count)
    found = columns(split, ["id", "label"], at_once=4)
    assert found["id"].tolist() == [7 * i for i in range(count)]
    assert found["label"].tolist() == [i % 3 for i in range(count)]
    assert max(split.asked) <= 4
    assert sum(split.asked) == count
    with pytest.raises(RecipeError, match="no column 'text' of numbers"):
        columns(split, ["text"])
    with pytest.raises(RecipeError, match="no column 'colour'"):
        columns(split, ["colour"])


def test_columns_in_memory_are_not_copied():
    split = TensorSplit({"label": torch.arange(4)}, first_id=10)
    found = columns(split, ["id", "label"])
    assert found["label"] is split.tensors["label"]
    assert found["id"].tolist() == [10, 11, 12, 13]


def test_columns_of_rows_read_from_files(tmp_path):
    lines = [f"{i / 10},{'red' if i % 2 else 'blue'},{'test' if i % 5 == 0 else 'train'}" for i in range(20)]
    (tmp_path / "rows.csv").write_text("x,label,split\n" + "\n".join(lines) + "\n")
    split = load_data(tmp_path / "rows.csv").splits["train"]
    found = columns(split, ["id", "label"])
    batch = split.__getitems__(list(range(len(split))))
    assert torch.equal(found["id"], batch["id"])
    assert torch.equal(found["label"], batch["label"])
    assert len(found["id"].unique()) == len(split)
