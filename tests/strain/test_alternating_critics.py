"""Several optimisers in alternation: a critic learns twice before each update of the student that must please it."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


class Adversary(Method):
    """The critic tells the teacher's hint from the student's; every second step the student learns to fool it."""

    card = Card("adversary", needs=("hint",))
    ratio: int = 2

    def setup(self):
        self.critic = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))

    def trainees(self):
        return {"student": [self.student.model], "critic": [self.critic]}

    def learn(self, batch, progress):
        batch = batch | {"real": self.teacher(batch, reads={"hint"})["hint"]}
        first = yield Update("critic", self.judge, batch | {"fake": self.student(batch)["hint"]})
        if progress.step % self.ratio == 1:
            assert first.values["judge"] > 0
            yield Update("student", self.fool, batch)

    def judge(self, batch):
        scores = nn.functional.softplus(self.critic(batch["fake"])) + nn.functional.softplus(
            -self.critic(batch["real"])
        )
        return Loss.mean("judge", scores.squeeze(1))

    def fool(self, batch):
        signals = self.student(batch)
        return self.task.loss(signals, batch) + 0.3 * Loss.mean("fool", -self.critic(signals["hint"]).squeeze(1))


def build():
    teacher = Teacher(Net(4), view="a", taps={"hint": "fc2"})
    student = Student(Net(6), view="x", taps={"hint": "fc2"})
    return Adversary(), situation(student, teacher, **PLAIN, trainees={"critic": {"lr": 0.02, "optimizer": "adam"}})


def test_alternation_is_the_loop_one_would_write(tmp_path):
    course = survives(build, tmp_path)

    method, where = fresh(build)
    settle(method, where)
    student, teacher, critic = where.student.model, where.teacher.model, method.critic
    learn = torch.optim.SGD(student.parameters(), lr=0.1)
    judge = torch.optim.Adam(critic.parameters(), lr=0.02)

    def hint(net, x):
        return net.fc2(torch.relu(net.fc1(x)))

    for step, batch in enumerate(steps(where)):
        real, fake = hint(teacher, batch["a"]).detach(), hint(student, batch["x"]).detach()
        judge.zero_grad()
        scores = nn.functional.softplus(critic(fake)) + nn.functional.softplus(-critic(real))
        scores.mean().backward()
        judge.step()
        if step % 2 == 1:
            learn.zero_grad()
            loss = nn.functional.cross_entropy(student(batch["x"]), batch["label"])
            (loss - 0.3 * critic(hint(student, batch["x"])).mean()).backward()
            learn.step()

    for ours, theirs in zip(course.methods[0].critic.parameters(), critic.parameters()):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(course.situation.student.model.parameters(), student.parameters()):
        torch.testing.assert_close(ours, theirs)


class Minimax(Method):
    """A perturbation of each input column ascends while the student descends on the perturbed inputs."""

    card = Card("minimax")

    def setup(self):
        self.shift = nn.Parameter(torch.zeros(6))

    def trainees(self):
        return {"student": [self.student.model], "shift": [self.shift]}

    def learn(self, batch, progress):
        harder = yield Update("shift", self.ascend, batch)
        after = yield Update("student", self.loss, batch)
        assert after.values["kl"] >= harder.values["kl"] - 1e-6  # between the two only the shift moved, uphill

    def loss(self, batch):
        moved = batch | {"x": batch["x"] + 0.1 * self.shift.tanh()}
        return Loss.mean("kl", kl(self.student(moved)["logits"], self.teacher(batch)["logits"]))

    def ascend(self, batch):
        return -1 * self.loss(batch)


def test_a_parameter_ascends_what_the_student_descends(tmp_path):
    def build():
        return Minimax(), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    assert course.methods[0].shift.abs().min() > 0
