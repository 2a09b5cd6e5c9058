"""Features are replaced inside a teacher's forward pass: one alone, or several stacked, with masks that learn."""

import pytest
import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


class Masks(Method):
    """Each mask moves the masked teacher towards the student; exclusive, or each on top of those before it."""

    card = Card("masks", teacher_mode="through")
    stacked: bool = False

    def prepare(self):
        self.teacher.tap("first", "fc1").tap("second", "fc2")

    def setup(self):
        self.masks = nn.ParameterDict({n: torch.zeros(self.teacher.shapes[n]) for n in ("first", "second")})

    def trainees(self):
        return {name: [self.masks[name]] for name in self.masks}

    def learn(self, batch, progress):
        batch = batch | {"ours": self.student(batch)["logits"]}
        for name in self.masks:
            yield Update(name, lambda piece, name=name: self.drift(name, piece), batch)

    def drift(self, name, batch):
        names = list(self.masks)
        active = names[: names.index(name) + 1] if self.stacked else [name]
        replace = {n: lambda feature, n=n: feature * self.masks[n].sigmoid() for n in active}
        return Loss.mean("drift", kl(self.teacher(batch, replace=replace)["logits"], batch["ours"]))


@pytest.mark.parametrize("stacked", [False, True])
def test_masks_learn_exclusive_or_stacked(stacked, tmp_path):
    def build():
        student, teacher = Student(Net(6), view="x"), Teacher(Net(4, dropout=0.2), view="a")
        return Masks(stacked=stacked), situation(student, teacher, **PLAIN | {"lr": 9.0})

    course = survives(build, tmp_path)
    method, where = fresh(build)
    settle(method, where)
    net, masks = where.teacher.model.eval(), method.masks

    def forward(a, first, second):
        return net.out(torch.relu(net.fc2(torch.relu(net.fc1(a) * first)) * second))

    for batch in steps(where):
        ours = where.student.model(batch["x"]).detach()
        for name in masks:
            first = masks["first"].sigmoid() if name == "first" or stacked else 1.0
            second = masks["second"].sigmoid() if name == "second" else 1.0
            loss = kl(forward(batch["a"], first, second), ours).mean()
            masks[name].data -= 9.0 * torch.autograd.grad(loss, masks[name])[0]
    for name in masks:
        assert masks[name].abs().max() > 1e-2
        torch.testing.assert_close(course.methods[0].masks[name], masks[name])
