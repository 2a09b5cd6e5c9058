"""MGDFR: salience in closed form for a linear teacher, what is held fixed, and that a run survives."""

import pytest
import torch
from harness import survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import Course, settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.losses import kl
from limbeck.methods.mgdfr import MGDFR, FromSalient, JointTraining, hold, shuffle
from limbeck.tasks import Task

NAMES = ["a", "b", "c"]


class Net(nn.Module):
    def __init__(self, inputs, width=6):
        super().__init__()
        self.fc, self.out = nn.Linear(inputs, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.out(self.fc(x).relu())


def situation():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (20,), generator=g)
    split = TensorSplit({"x": torch.randn(20, 5, generator=g), "a": torch.randn(20, 4, generator=g), "label": y})
    data = Data({"train": split, "validation": split}, {"x": "", "a": "", "label": ""}, {"label": NAMES}, source="toy")
    student, teacher = Student(Net(5), view="x"), Teacher(Net(4, 8), view=["a"])
    task = Task("classification", labels=NAMES)
    return Situation(student, teacher, task, data, TrainSettings(epochs=1, batch_size=8, select="last"))


def bound(plan, where):
    plan.bind(where.student, where.teacher, where.task).look_at(where.data)
    return plan


def test_shuffling_moves_one_feature_and_leaves_no_sample_its_own():
    h = torch.arange(24.0).view(6, 4)
    moved = shuffle(h, 2)
    assert torch.equal(moved[:, [0, 1, 3]], h[:, [0, 1, 3]])
    assert (moved[:, 2] != h[:, 2]).all()
    assert torch.equal(moved[:, 2].sort().values, h[:, 2])


def test_the_salience_of_a_linear_teacher_is_its_closed_form():
    """With logits W h + b, moving feature j by d adds W_j d to the difference e: mean over classes of (2 e W_j d + (W_j d)^2)."""
    where = situation()
    plan = bound(MGDFR(samples=20), where)
    rows = plan._rows()
    found = plan.salience("embedding", rows) if where.teacher.tap("embedding", "out:input") else None
    h = where.teacher.model.fc(rows["a"]).relu()
    error = where.teacher.model(rows["a"]) - where.student.model(rows["x"])
    weight = where.teacher.model.out.weight
    for j in range(8):
        step = (h[:, j].roll(len(h) // 2) - h[:, j])[:, None] * weight[:, j]
        torch.testing.assert_close(
            found["salience"][j], (2 * error * step + step**2).mean().detach(), rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(found["mean"], h.mean(0).detach())
    where.teacher.model.out.weight.data[:, 3] = 0  # a feature that the teacher does not read
    assert plan.salience("embedding", rows)["salience"][3] == 0


def test_what_is_held_no_longer_varies_between_samples():
    h = torch.randn(5, 4, 3, 3)
    fixed, value = torch.tensor([True, False, True, False]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    held = hold(h, fixed, value)
    assert (held[:, 0] == 1).all()
    assert (held[:, 2] == 3).all()
    assert torch.equal(held[:, [1, 3]], h[:, [1, 3]])


@pytest.mark.parametrize(("options", "free"), [({"share": 1.0}, 8), ({"share": 0.25}, 2), ({"hold": "none"}, 8)])
def test_the_share_stays_free_and_all_of_it_is_plain_kd(options, free):
    where = situation()
    course = Course(MGDFR(joint={"epochs": 0}, **options), where)
    course.run()
    (method,) = course.methods
    assert isinstance(method, FromSalient)
    assert int((~method.fixed).sum()) == free
    batch = where.data["train"].__getitems__(list(range(6)))
    said, plain = method.shown(batch)["logits"], where.teacher(batch)["logits"]
    assert torch.equal(said, plain) == (free == 8)
    expected = kl(where.student(batch)["logits"], said, temperature=4.0).sum()
    torch.testing.assert_close(method.loss(batch).parts["kl"].sum, expected)


def test_the_most_salient_features_are_the_free_ones():
    where = situation()
    plan = MGDFR(joint={"epochs": 0}, share=0.25, samples=20)
    course = Course(plan, where)
    course.run()
    salience = plan.memory["salience"]["salience"]
    assert set((~course.methods[0].fixed).nonzero().flatten().tolist()) == set(salience.topk(2).indices.tolist())


def test_joint_training_pulls_both_networks():
    where = situation()
    method = JointTraining(match_weight=2.0)
    settle(method, where)
    where.teacher.learning = True
    batch = where.data["train"].__getitems__(list(range(6)))
    loss = method.loss(batch)
    apart = where.student.model(batch["x"]) - where.teacher.model(batch["a"])
    torch.testing.assert_close(loss.values_weighted()[-1], 2 * apart.square().mean())
    loss.total().backward()
    assert all(p.grad is not None for actor in (where.student, where.teacher) for p in actor.model.parameters())


def test_a_cut_off_run_ends_in_the_same_bits(tmp_path):
    course = survives(lambda: (MGDFR(), situation()), tmp_path)
    assert [r.name for r in course.results] == ["joint", "distil"]
