"""C2KD: its terms written out one sample at a time, what each network feels, and that a run survives."""

import math

import torch
from harness import survives
from scipy.stats import kendalltau
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.methods.c2kd import C2KD, both_ways
from limbeck.tasks import Task

NAMES = ["a", "b", "c", "d"]


class Net(nn.Module):
    def __init__(self, inputs, width=6):
        super().__init__()
        self.fc, self.out = nn.Linear(inputs, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.out(self.fc(x).tanh())


def situation(dtype=torch.float32):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, 4, (20,), generator=g)
    columns = {
        "x": torch.randn(20, 5, generator=g).to(dtype),
        "a": torch.randn(20, 3, generator=g).to(dtype),
        "label": y,
    }
    split = TensorSplit(columns)
    data = Data({"train": split, "validation": split}, {"x": "", "a": "", "label": ""}, {"label": NAMES}, source="toy")
    student, teacher = Student(Net(5).to(dtype), view="x"), Teacher(Net(3, 9).to(dtype), view="a")
    train = TrainSettings(epochs=2, batch_size=8, select="last")
    return Situation(student, teacher, Task("classification", labels=NAMES), data, train)


def settled(where, **options):
    method = C2KD(**options)
    settle(method, where)
    method.to(next(where.student.model.parameters()).dtype)
    where.teacher.learning = True  # as the engine sets it while its trainee has the turn
    return method, where.data["train"].__getitems__(list(range(12)))


def softmax(row):
    highest = max(row)
    powers = [math.exp(v - highest) for v in row]
    return [p / sum(powers) for p in powers]


def divergence(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


def test_every_term_is_what_it_says_one_sample_after_another():
    where = situation(torch.float64)
    method, batch = settled(where)
    parts = method.loss(batch).parts
    z = {"student": where.student.model(batch["x"]), "teacher": where.teacher.model(batch["a"])}
    h = {"student": where.student.model.fc(batch["x"]).tanh(), "teacher": where.teacher.model.fc(batch["a"]).tanh()}
    r = {who: method.proxies[who](h[who]).tolist() for who in z}
    crossed, kept = 0.0, 0
    for i, label in enumerate(batch["label"].tolist()):
        ours, theirs = r["student"][i], r["teacher"][i]
        if kendalltau(ours, theirs).statistic > 0:
            kept += 1
            ours, theirs = ([0.0 if c == label else v for c, v in enumerate(row)] for row in (ours, theirs))
            p, q = softmax(theirs), softmax(ours)
            crossed += divergence(p, q) + divergence(q, p)
    assert 0 < kept < 12
    torch.testing.assert_close(parts["crossed"].sum, torch.tensor(crossed, dtype=torch.float64))
    assert parts["crossed"].count == 12  # the mean is over all samples, also those without a say
    for who in z:
        tied = sum(
            divergence(softmax(a), softmax(b)) + divergence(softmax(b), softmax(a))
            for a, b in zip(z[who].tolist(), r[who])
        )
        torch.testing.assert_close(parts[f"proxy.{who}"].sum, torch.tensor(tied, dtype=torch.float64))
        task = nn.functional.cross_entropy(z[who], batch["label"], reduction="sum")
        torch.testing.assert_close(parts["task" if who == "student" else "task.teacher"].sum, task)


def test_each_side_learns_from_the_other_as_it_stands():
    """d/da of KL(sg b || a) + KL(sg a || b) is softmax(a) - softmax(b): the second term holds a fixed."""
    a, b = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a.requires_grad_(), b.requires_grad_()
    both_ways(a, b).sum().backward()
    torch.testing.assert_close(a.grad, (a.softmax(1) - b.softmax(1)).detach())
    torch.testing.assert_close(b.grad, (b.softmax(1) - a.softmax(1)).detach())


def test_only_proxies_meet_across_the_networks():
    """Without the tie between network and proxy, the crossed term reaches a body only through its own proxy."""
    where = situation(torch.float64)
    method, batch = settled(where, proxy_weight=0.0, task_weight=0.0)
    method.loss(batch).total().backward()
    assert where.student.model.out.weight.grad is None or (where.student.model.out.weight.grad == 0).all()
    assert where.student.model.fc.weight.grad.abs().sum() > 0
    assert where.teacher.model.fc.weight.grad.abs().sum() > 0


def test_nothing_is_crossed_where_no_sample_agrees_enough():
    where = situation()
    method, batch = settled(where, least_agreement=1.0)
    assert method.loss(batch).parts["crossed"].sum == 0


def test_dense_outputs_are_crossed_at_every_position():
    ours, theirs = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = torch.randint(0, 4, (2, 3, 3), generator=torch.Generator().manual_seed(3))
    target[0, 0, 0] = -1
    crossed = C2KD().crossed(ours, theirs, target)
    flat = C2KD().crossed(*(z.movedim(1, -1).reshape(-1, 4) for z in (ours, theirs)), target.reshape(-1))
    torch.testing.assert_close(crossed.reshape(-1), flat)
    assert crossed[0, 0, 0] == 0


def test_the_teacher_learns_too_and_a_cut_off_run_ends_in_the_same_bits(tmp_path):
    before = situation().teacher.model.state_dict()
    course = survives(lambda: (C2KD(), situation()), tmp_path)
    after = course.situation.teacher.model.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert isinstance(course.methods[0], Method)
    assert set(course.situation.student.model.state_dict()) == set(Net(5).state_dict())  # the proxies do not ship
