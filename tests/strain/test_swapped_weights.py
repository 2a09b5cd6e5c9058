"""Other weights during the forward pass than those that are stepped: a quantised student learns in full precision."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import kl
from limbeck.method import Card, Method
from limbeck.methods.kd import KD
from limbeck.objectives import Loss

STEP = 0.25


def rounded(weight):
    """To multiples of a quarter, with the gradient of the identity."""
    return weight + (torch.round(weight / STEP) * STEP - weight).detach()


class Quantised(Method):
    """KL of the quantised student; `functional_call` swaps the weights for the length of one call."""

    card = Card("quantised")

    def loss(self, batch):
        net = self.student.model
        weights = {name: rounded(p) for name, p in net.named_parameters()}
        args, kwargs = self.student.shown(batch)
        return Loss.mean("kl", kl(functional_call(net, weights, args, kwargs), self.teacher(batch)["logits"]))


class Rounded(nn.Module):
    """The same as a parametrisation, so that any method and the validation see the quantised student."""

    def forward(self, weight):
        return rounded(weight)


class QuantisedKD(KD):
    """Plain KD on a student whose weights are parametrised."""

    def prepare(self):
        for module in self.student.model.modules():
            if isinstance(module, nn.Linear) and not parametrize.is_parametrized(module):
                for name in ("weight", "bias"):
                    parametrize.register_parametrization(module, name, Rounded())


def by_hand(build, loss):
    method, where = fresh(build)
    settle(method, where)
    net = fresh(build)[1].student.model
    for batch in steps(where):
        sharp = {n: (torch.round(p / STEP) * STEP).detach().requires_grad_() for n, p in net.named_parameters()}
        value = loss(functional_call(net, sharp, batch["x"]), where.teacher.model(batch["a"]).detach(), batch)
        for p, grad in zip(net.parameters(), torch.autograd.grad(value, list(sharp.values()))):
            p.data -= 0.1 * grad
    return net.state_dict()


def test_the_gradient_at_the_rounded_weights_steps_the_full_ones(tmp_path):
    def build():
        return Quantised(), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    expected = by_hand(build, lambda ours, theirs, _: kl(ours, theirs).mean())
    for name, tensor in course.situation.student.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
        assert not torch.equal(tensor, torch.round(tensor / STEP) * STEP)


def test_a_parametrised_student_is_seen_by_any_method_and_by_validation(tmp_path):
    def build():
        return QuantisedKD(temperature=2), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)

    def loss(ours, theirs, batch):
        return kl(ours, theirs, temperature=2).mean() + nn.functional.cross_entropy(ours, batch["label"])

    expected, net = by_hand(build, loss), course.situation.student.model
    torch.testing.assert_close(net.fc1.parametrizations.weight.original, expected["fc1.weight"])
    assert torch.equal(net.fc1.weight, torch.round(expected["fc1.weight"] / STEP) * STEP)
