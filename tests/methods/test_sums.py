"""Every method that is a sum of terms adds up with every other: the parts of both, each with its weight, and one task."""

import pytest
import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.encoders import EncoderTransfer
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.language.crossing import Crossing
from limbeck.language.writing import Writing
from limbeck.method import adds_up
from limbeck.methods import all_methods
from limbeck.tasks import Task

NAMES = ["a", "b", "c", "d"]


class Net(nn.Module):
    """Two resolutions with the batch norm before the ReLU that some methods read, pooled, classified."""

    def __init__(self, width):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, 4)

    def forward(self, x):
        return self.fc(self.pool(self.layer2(self.layer1(x))).flatten(1))


def situation():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    columns = {"x": torch.randn(24, 3, 8, 8, generator=g), "label": torch.arange(24) % 4}
    split = TensorSplit(columns)
    data = Data({"train": split, "validation": split}, {"x": "", "label": ""}, {"label": NAMES}, source="toy")
    actors = Student(Net(3), view="x"), Teacher(Net(5), view="x")
    return Situation(*actors, Task("classification", labels=NAMES), data, TrainSettings(epochs=1, batch_size=8))


LISTED = {name: cls for name, cls in all_methods().items() if cls.card.listed and cls.card.teacher_mode != "none"}
TERMS = {name: cls for name, cls in LISTED.items() if hasattr(cls, "loss") and adds_up(cls)}
OF_TEXTS = (
    Writing,
    Crossing,
    EncoderTransfer,
)  # they need tokens, which these pictures have not (test_on_policy and test_seq_kd add them up)
SUMMABLE = sorted(name for name, cls in TERMS.items() if not issubclass(cls, OF_TEXTS))
WHOLE = sorted(LISTED.keys() - TERMS.keys())


def settled(method):
    where = situation()
    torch.manual_seed(5)
    settle(method, where)
    where.student.model.eval()
    method.eval()
    return method.draw(where.data["train"].__getitems__(list(range(12))))


def test_there_are_many():
    assert {"kd", "dkd", "dist", "fitnets", "at", "rkd", "sp", "vid", "ofa", "reviewkd", "crd"} <= set(SUMMABLE)


@pytest.mark.parametrize("other", [name for name in SUMMABLE if name != "kd"])
def test_a_sum_is_the_sum_of_its_transfers_and_one_task(other):
    """Bridges are drawn anew per object, so the sum's own members are asked one by one."""
    kd, cls = all_methods()["kd"], all_methods()[other]
    total = kd(weight=0.5, task_weight=0.7) + cls(weight=2.0)
    batch = settled(total)
    parts = total.loss(batch)
    first, second = total.members.values()
    student, teacher = total.student(batch), total.teacher(batch)
    apart = (
        0.5 * first.transfer(student, teacher, batch).total() + 2.0 * second.transfer(student, teacher, batch).total()
    )
    task = 0.7 * total.task.loss(student, batch).total()
    torch.testing.assert_close(parts.total(), apart + task, rtol=1e-5, atol=1e-6)
    assert "task" in parts.parts


def test_all_of_them_at_once():
    classes = [all_methods()[name] for name in SUMMABLE]
    total = classes[0]()
    for cls in classes[1:]:
        total = total + cls()
    batch = settled(total)
    assert total.loss(batch).total().isfinite()
    assert len(total.members) == len(SUMMABLE)


@pytest.mark.parametrize("name", WHOLE)
def test_what_plays_its_own_order_is_refused_in_a_sentence(name):
    with pytest.raises(RecipeError, match=f"'{name}' is a procedure of its own, not a sum of terms"):
        all_methods()["kd"]() + all_methods()[name]()
