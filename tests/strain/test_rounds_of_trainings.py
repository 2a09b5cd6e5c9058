"""Rounds around whole trainings: a procedure yields stages and decides by what the last one left."""

import copy

import torch
from harness import PLAIN, Net, finish, rows, situation, survives, toy
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.losses import kl
from limbeck.method import Card, Method, Procedure, Stage
from limbeck.methods.supervised import Supervised
from limbeck.objectives import Loss


class Queries(Procedure):
    """Active learning: after each training the pool's rows of which the student is least sure are labelled and join."""

    card = Card("queries", teacher_mode="none")

    def stages(self):
        pool, known = rows(30, 1000, 8), torch.arange(6)
        for turn in range(3):
            chosen = TensorSplit({k: v[known] for k, v in pool.tensors.items() if k != "id"}, 1000 * (turn + 1))
            data = Data({"train": chosen, "validation": rows(12, 500, 2)}, fingerprint=str(turn))
            yield Stage(f"round {turn}", Supervised(), steps=2, data=data)
            known = torch.cat([known, self.remember(f"added {turn}", self.unsure, pool, known)])
        self.known = known

    @torch.no_grad()
    def unsure(self, pool, known):
        margin = self.student(pool.tensors)["logits"].topk(2).values.diff(dim=-1).squeeze(-1)
        margin[known] = -torch.inf  # the difference of second and first is negative: the surest are the smallest
        return margin.topk(4).indices


def test_a_pool_grows_by_what_the_student_of_each_round_is_unsure_of(tmp_path):
    plans = []

    def build():
        plans.append(Queries())
        return plans[-1], situation(Student(Net(6, dropout=0.2), view="x"), batch_size=4)

    course = survives(build, tmp_path)
    assert [r.name for r in course.results] == ["round 0", "round 1", "round 2"]
    assert all(len(plan.known.unique()) == 18 for plan in plans if hasattr(plan, "known"))
    assert (
        len({tuple(plan.known.tolist()) for plan in plans if hasattr(plan, "known")}) == 1
    )  # resumed runs chose alike
    assert course.plan.known[6:].tolist() != list(range(6, 18))


class Imitate(Method):
    """KL between teacher and student; `who` learns from the other."""

    card = Card("imitate")
    who: str = "student"

    def trainees(self):
        return {"student": [self.student.model if self.who == "student" else self.teacher.model]}

    def loss(self, batch):
        ours, theirs = self.student(batch)["logits"], self.teacher(batch)["logits"]
        pair = (ours, theirs.detach()) if self.who == "student" else (theirs, ours.detach())
        return Loss.mean(self.who, kl(*pair))


class Turns(Procedure):
    """Teacher and student take turns: each learns from the other, frozen meanwhile; the last word is a copy."""

    card = Card("turns")

    def stages(self):
        for turn in range(2):
            yield Stage(f"student {turn}", Imitate(who="student"), steps=2)
            yield Stage(f"teacher {turn}", Imitate(who="teacher"), steps=2)
        self.teacher.model.load_state_dict(self.student.model.state_dict())
        yield Stage("after the copy", Imitate(who="student"), steps=2)


def test_teacher_and_student_take_turns(tmp_path):
    def build():
        return Turns(), situation(
            Student(Net(6), view="x"), Teacher(Net(6, dropout=0.3), view="x"), **PLAIN | {"epochs": None, "steps": 2}
        )

    course = survives(build, tmp_path)
    student, teacher = course.situation.student.model, course.situation.teacher.model
    for ours, theirs in zip(student.parameters(), teacher.parameters()):
        # After the copy both agree, the KL is at its minimum and its gradient is zero: nothing moves any more.
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


class BornAgain(Method):
    """A student learns from a copy of itself as it was when the generation began."""

    card = Card("born-again", teacher_mode="none", needs=())

    def setup(self):
        self.before = copy.deepcopy(self.student.model).eval()
        for module in self.student.model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def trainees(self):
        return {"student": [self.student.model]}

    def loss(self, batch):
        with torch.no_grad():
            theirs = self.before(*self.student.shown(batch)[0])
        return Loss.mean("self", kl(self.student(batch)["logits"], theirs)) + self.task.loss(self.student(batch), batch)


def test_generations_each_learn_from_the_one_before(tmp_path):
    def build():
        stages = [Stage("first", Supervised()), Stage("second", BornAgain()), Stage("third", BornAgain())]
        return stages, situation(Student(Net(6), view="x"))

    course = survives(build, tmp_path)
    second, third = course.methods[1:]
    assert not torch.equal(second.before.out.weight, third.before.out.weight)


class Elastic(Method):
    """A second task is learnt while important weights are held where the first task left them (EWC)."""

    card = Card("elastic", teacher_mode="none", needs=())

    def setup(self):
        self.anchor = copy.deepcopy(self.student.model).requires_grad_(False)

    def trainees(self):
        return {"student": [self.student.model]}

    def loss(self, batch):
        pairs = zip(self.student.model.parameters(), self.anchor.parameters())
        away = sum(((p - a) ** 2).sum() for p, a in pairs)
        return self.task.loss(self.student(batch), batch) + 50.0 * Loss.mean("held", away.expand(len(batch["id"])))


def test_new_tasks_come_with_data_and_columns_of_their_own(tmp_path):
    later = toy(train=16, extra=torch.zeros(16))
    later.splits["train"].tensors["label"] = 2 - later.splits["train"].tensors["label"]
    torch.manual_seed(0)
    start = Net(6).state_dict()

    def build(second):
        net = Net(6)
        net.load_state_dict(start)
        stages = [Stage("old", Supervised()), Stage("new", second, epochs=3, data=later, train={"lr": 0.01})]
        return stages, situation(Student(net, view="x"), **PLAIN)

    def moved(course):
        old = finish(lambda: (Supervised(), build(None)[1])).situation.student.model.state_dict()
        return sum(float((p - old[n]).square().sum()) for n, p in course.situation.student.model.state_dict().items())

    held, free = survives(lambda: build(Elastic()), tmp_path), finish(lambda: build(Supervised()))
    assert held.results[1].steps == 6  # 16 rows of its own, not the run's 22
    assert moved(held) < 0.3 * moved(free)
