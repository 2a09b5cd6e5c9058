"""The student is operated on in mid-run: units that gates learnt to close are cut out, and the optimiser is made anew."""

import copy

import torch
from harness import Net, fresh, situation, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import Course
from limbeck.losses import kl, mse
from limbeck.method import Card, Method, Rebuilt, Stage, Update
from limbeck.methods.supervised import Supervised
from limbeck.objectives import Loss


def keep_units(net, units):
    """Keep only these hidden units between fc1 and fc2."""
    first, second = nn.Linear(net.fc1.in_features, len(units)), nn.Linear(len(units), net.fc2.out_features)
    with torch.no_grad():
        first.weight.copy_(net.fc1.weight[units])
        first.bias.copy_(net.fc1.bias[units])
        second.weight.copy_(net.fc2.weight[:, units])
        second.bias.copy_(net.fc2.bias)
    net.fc1, net.fc2 = first, second


class Pruning(Method):
    """Gates on hidden units fall under a multiplier that rises until few are open (minimax); twice, the closed are cut."""

    card = Card("pruning")
    keep: tuple[int, ...] = (5, 3)

    def prepare(self):
        self.student.tap("hidden", "fc1").tap("late", "fc2")

    def setup(self):
        self.gates = nn.Parameter(torch.linspace(0.9, 1.1, self.student.model.fc1.out_features))
        self.register_buffer("multiplier", torch.zeros(()))
        self.register_buffer("cuts", torch.zeros((), dtype=torch.int64))

    def trainees(self):
        return {"student": [self.student.model, self.gates]}

    def learn(self, batch, progress):
        if progress.step in (2, 4):
            units = self.gates.abs().topk(self.keep[int(self.cuts)]).indices.sort().values
            keep_units(self.student.model, units)
            self.gates = nn.Parameter(self.gates[units].clone())
            self.cuts += 1
            yield Rebuilt("student")
        outcome = yield Update("student", self.loss, batch)
        self.multiplier += 0.1 * outcome.values["open"]

    def loss(self, batch):
        signals = self.student(batch, replace={"hidden": lambda h: h * self.gates})
        loss = Loss.mean("kl", kl(signals["logits"], self.teacher(batch)["logits"]))
        loss = loss + Loss.mean("late", mse(signals["late"], torch.zeros_like(signals["late"]))) * 0.01
        return loss + self.multiplier * Loss.mean("open", self.gates.abs().mean().expand(len(signals["logits"])))

    def structure(self):
        return {"units": self.student.model.fc1.out_features, "gates": len(self.gates)}

    def restructure(self, structure):
        keep_units(self.student.model, torch.arange(structure["units"]))
        self.gates = nn.Parameter(self.gates[: structure["gates"]].detach().clone())


def build(**train):
    return Pruning(), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **train)


def test_pruned_twice_and_taps_still_listen(tmp_path):
    course = survives(build, tmp_path)
    net, method = course.situation.student.model, course.methods[0]
    assert net.fc1.weight.shape == (3, 6)
    assert net.fc2.weight.shape == (5, 3)
    assert method.gates.shape == (3,)
    assert int(method.cuts) == 2
    assert course.situation.student(course.situation.data.splits["test"].tensors)["hidden"].shape == (12, 3)


def test_pruning_with_an_average_of_the_weights_and_a_stage_behind_it(tmp_path):
    def stages():
        method, where = build(ema=0.9)
        return [Stage("prune", method), Stage("recover", Supervised(), steps=2)], where

    course = survives(stages, tmp_path)
    assert course.situation.student.model.fc1.weight.shape == (3, 6)


def test_the_optimiser_starts_afresh_with_the_cut_weights():
    """Right after the cut an Adam step moves every weight by lr (its first step is +-lr), as a new optimiser's does."""
    seen = []

    class Watching(Pruning):
        def learn(self, batch, progress):
            if progress.step in (2, 4):
                before = None
                for item in self._relay(super().learn(batch, progress)):
                    if isinstance(item, Update):
                        before = copy.deepcopy(self.student.model.fc1.bias)
                    yield item
                seen.append((self.student.model.fc1.bias - before).abs())
            else:
                yield from super().learn(batch, progress)

        def _relay(self, play):
            yield next(play)
            yield play.send(None)

    _, where = fresh(lambda: build(schedule="constant", lr=0.01, weight_decay=0.0))
    Course(Watching(), where).run()
    assert len(seen) == 2
    for moved in seen:
        assert ((moved - 0.01).abs() < 1e-4).logical_or(moved == 0).all()  # a dead unit has no gradient
        assert (moved > 0).any()
