"""What a missing modality is: zeros, an empty text, or an argument that is not given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck import Student, Task, Teacher, View
from limbeck.data.tensors import TensorSplit
from limbeck.engine import validate
from limbeck.engine.processes import World
from limbeck.evaluation.measure import cost, in_order, measure
from limbeck.evaluation.missing import missing

TASK = Task("classification", labels=["n", "p"])
ROWS = TensorSplit(
    {
        "x": torch.tensor([[1.0], [-1.0], [2.0]]),
        "a": torch.tensor([[-3.0], [3.0], [-1.0]]),
        "label": torch.tensor([1, 0, 1]),
    }
)


def once(split=ROWS):
    return validate.batches(split, 2, World())


class Sum(nn.Module):
    """The sign of x + a; without a, of x."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.given: list[set[str]] = []

    def forward(self, x, a=None):
        self.given.append({"x"} | ({"a"} if a is not None else set()))
        y = self.scale * (x if a is None else x + a)
        return torch.cat([-y, y], 1)


def test_zeros_where_it_must_be_given_and_nothing_where_it_need_not():
    student = Student(Sum(), view=View(x="x", a="a"))
    found = missing(student, ["x", "a"], once(), TASK, World())
    assert found == {"without_x": 0.0, "without_a": 1.0}
    assert {frozenset(given) for given in student.model.given} == {frozenset("xa"), frozenset("x")}
    assert student.view == View(x="x", a="a")
    by_position = Student(Sum(), view=["x", "a"])
    assert missing(by_position, ["x", "a"], once(), TASK, World()) == {"without_x": 0.0, "without_a": 1.0}
    assert all(given == {"x", "a"} for given in by_position.model.given)


def test_one_column_has_no_other_to_lean_on():
    assert missing(Student(nn.Linear(1, 2), view="x"), ["x"], once(), TASK, World()) == {}


def test_the_view_is_put_back_when_a_network_cannot_do_without():
    class Brittle(Sum):
        def forward(self, x, a=None):
            if a is None:
                raise RuntimeError("no a")
            return super().forward(x, a)

    student = Student(Brittle(), view=View(x="x", a="a"))
    with pytest.raises(RuntimeError, match="no a"):
        missing(student, ["x", "a"], once(), TASK, World())
    assert student.view == View(x="x", a="a")


def test_a_teacher_is_measured_in_the_order_of_the_task():
    class Known(nn.Module):
        """Sure of the right class, in the order p, n."""

        def forward(self, x):
            return torch.cat([x, -x], 1)

    teacher = Teacher(Known(), view="x", labels=["p", "n"])
    assert measure(teacher, once(), TASK, time_it=False).entry["metric"] == 1.0
    assert measure(Teacher(Known(), view="x"), once(), TASK, time_it=False).entry["metric"] == 0.0
    renamed = Teacher(Known(), view="x", labels=["yes", "no"], label_map={"yes": "p", "no": "n"})
    assert measure(renamed, once(), TASK, time_it=False).entry["metric"] == 1.0
    assert measure(Student(Known(), view="x", labels=["p", "n"]), once(), TASK, time_it=False).entry["metric"] == 0.0


def test_a_class_that_the_teacher_lacks_is_never_chosen_and_one_of_its_own_is_left_out():
    task = Task("classification", labels=["a", "b", "c"])
    teacher = Teacher(nn.Linear(1, 3), view="x", labels=["c", "z", "a"])
    logits = torch.tensor([[1.0, 9.0, 2.0]])
    assert in_order(teacher, logits, task).tolist() == [[2.0, -torch.inf, 1.0]]
    stranger = Teacher(nn.Linear(1, 3), view="x", labels=["u", "v", "w"])
    assert in_order(stranger, logits, task) is logits


def test_the_cost_is_that_of_batches_of_these_sizes():
    sizes = []

    class Counts(nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    found = cost(Student(Counts(1, 2), view="x"), once(), batch_size=7, repeats=4)
    assert sizes == [1] * 7 + [7] * 7 + [1, 7]  # 3 warm-ups, 4 counted, one watched
    assert (found["peak_bytes_1"], found["peak_bytes"]) == (8, 56)
    assert found["samples_per_second"] == pytest.approx(7000 / found["batch_median_ms"])
