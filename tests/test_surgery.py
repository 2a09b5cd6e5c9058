"""A network that was operated on notes how to be built again, draws the same in every process, and is rebuilt from its folder."""

import json

import pytest
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError
from limbeck.shipping.student import write
from limbeck.sources import operate, rebuild
from limbeck.tasks import Task

HERE = f"{__name__}:widen"


def widen(model: nn.Sequential, *, at: int, sizes: list[int]) -> None:
    """Layers `at` and the next one anew, with sizes[1] units between them."""
    model[at], model[at + 1] = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])


class Net(nn.Sequential):
    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__(nn.Linear(4, 3), nn.Linear(3, 2))


def widened(seed: int = 0, generator: int = 0) -> Student:
    student = Student(f"{__name__}:Net", args={"seed": seed}, view="x", taps={"hidden": "0"})
    torch.manual_seed(generator)
    operate(student.source, HERE, {"at": 0, "sizes": (4, 9, 2)})
    student.listen_again()
    return student


def shipped(student: Student, folder):
    data = Data({"train": TensorSplit({"x": torch.randn(2, 4)})}, {"x": ""}, {}, source="toy")
    write(folder, student, Task("regression", target="y"), data, student.source.spec)
    return folder


def test_what_was_done_is_noted_as_plain_data():
    student = widened()
    assert student.source.surgery == [{"by": HERE, "structure": {"at": 0, "sizes": [4, 9, 2]}}]
    assert student({"x": torch.randn(5, 4)})["hidden"].shape == (5, 9)
    assert Student(Net()).source.surgery == []


def test_every_process_draws_the_same_and_the_generator_is_left_alone():
    one, other = widened(generator=1), widened(generator=2)
    assert torch.equal(one.model[0].weight, other.model[0].weight)
    assert not torch.equal(one.model[0].weight, widened(seed=3).model[0].weight)
    torch.manual_seed(7)
    expected = torch.rand(3)
    student = Student(Net(), view="x")
    torch.manual_seed(7)
    operate(student.source, HERE, {"at": 0, "sizes": [4, 9, 2]})
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_builds_the_network_again_and_again(tmp_path):
    first = widened()
    x = torch.randn(5, 4)
    again = Student(shipped(first, tmp_path / "first"))
    assert torch.equal(again.model(x), first.model(x))
    operate(again.source, HERE, {"at": 0, "sizes": [4, 5, 2]})
    facts = json.loads((shipped(again, tmp_path / "second") / "limbeck.json").read_text())
    assert facts["model"] == f"{__name__}:Net"  # not the first folder, which may be gone
    assert facts["args"] == {"seed": 0}
    assert [done["structure"]["sizes"][1] for done in facts["surgery"]] == [9, 5]
    (tmp_path / "first").rename(tmp_path / "gone")
    assert torch.equal(Student(tmp_path / "second").model(x), again.model(x))


def test_a_folder_of_before_has_no_surgery_and_loads_as_ever(tmp_path):
    student = Student(f"{__name__}:Net", view="x")
    folder = shipped(student, tmp_path / "old")
    facts = json.loads((folder / "limbeck.json").read_text())
    del facts["surgery"]
    (folder / "limbeck.json").write_text(json.dumps(facts))
    x = torch.randn(5, 4)
    assert torch.equal(Student(folder).model(x), student.model(x))


def test_a_model_without_an_address_is_rebuilt_by_hand(tmp_path):
    student = Student(Net(), view="x")
    plain = shipped(student, tmp_path / "plain")
    with pytest.raises(RecipeError, match="Build the model yourself and pass student.weights="):
        Student(plain)
    operate(student.source, HERE, {"at": 0, "sizes": [4, 9, 2]})
    folder = shipped(student, tmp_path / "operated")
    with pytest.raises(RecipeError, match=r"limbeck\.sources\.rebuild\(model, '.*operated'\)"):
        Student(folder)
    model = Net(seed=5)
    rebuild(model, folder)
    x = torch.randn(5, 4)
    assert torch.equal(model(x), student.model(x))


def test_what_cannot_be_repeated_is_said(tmp_path):
    folder = shipped(widened(), tmp_path / "student")
    with pytest.raises(RecipeError, match="cannot be repeated on this Linear"):
        rebuild(nn.Linear(2, 2), folder)
    facts = json.loads((folder / "limbeck.json").read_text())
    facts["surgery"][0]["by"] = f"{__name__}:widened_away"
    (folder / "limbeck.json").write_text(json.dumps(facts))
    with pytest.raises(RecipeError, match="has no widened_away"):
        Student(folder)
