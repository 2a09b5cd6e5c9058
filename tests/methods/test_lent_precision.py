"""Networks compute in the run's precision in all of a step, also in `learn` and where texts are written; nowhere else, and nothing else."""

from contextlib import nullcontext

import points
import pytest
import torch
import writers
from harness import finish, fresh
from torch import nn

from limbeck.engine import trainer
from limbeck.engine.course import Course
from limbeck.method import Card, Method, Update
from limbeck.methods.consistency import Consistency
from limbeck.methods.dmd2 import DMD2
from limbeck.methods.minillm import MiniLLM
from limbeck.methods.on_policy import OnPolicy
from limbeck.objectives import Loss
from limbeck.precision import in_precision, lent
from limbeck.tasks import Task


class Watch:
    """Which dtypes the products of a network had, while `what` was going on."""

    def __init__(self, model):
        self.what, self.seen = "nothing", {}
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self.note)

    def note(self, module, args, output):
        self.seen.setdefault(self.what, set()).add(output.dtype)

    def during(self, owner, name):
        """Tell what is going on while `owner.name` runs."""
        plain = getattr(owner, name)

        def watched(*args, **options):
            before, self.what = self.what, name
            try:
                return plain(*args, **options)
            finally:
                self.what = before

        object.__setattr__(owner, name, watched)


class Looks(Method):
    """Asks its networks in `learn`, a bare module too, and multiplies something that is no network's."""

    card = Card("looks")

    def setup(self):
        self._said = {}

    def learn(self, batch, progress):
        ask = {"x": batch["x"], "time": torch.ones(len(batch["x"])), "condition": batch["label"]}
        self._said["student"] = self.student.model(ask["x"], ask["condition"], time=ask["time"])["prediction"].dtype
        with in_precision():
            self._said["bare"] = self.student.model.output(torch.zeros(2, 8)).dtype
        self._said["other"] = (torch.eye(3) @ torch.eye(3)).dtype
        self._said["actor"] = self.ask(batch)
        yield Update("student", self.loss, batch)
        self._said["after"] = self.ask(batch)

    def ask(self, batch):
        heard = []
        handle = self.student.model.output.register_forward_hook(lambda m, a, y: heard.append(y.dtype))
        self.student(batch)
        handle.remove()
        return heard[0]

    def loss(self, batch):
        x = self.student(batch)["generated"]
        return Loss.mean("size", x.square().mean(1))


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_in_learn_networks_are_in_the_runs_precision_and_nothing_else_is(precision, expected):
    plan, where = fresh(lambda: (Looks(), points.situation(precision=precision)))
    Course(plan, where).run()
    assert plan._said == {
        "student": torch.float32,  # called without an actor, and its head is read in fp32 anyhow
        "bare": expected,
        "other": torch.float32,
        "actor": expected,
        "after": expected,
    }


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_generators_samples_are_made_in_the_runs_precision_and_validation_is_not(precision):
    half = {torch.bfloat16 if precision == "bf16" else torch.float32}

    def build():
        method = DMD2(sampling_steps=2, gan_weight=0.1, critic_steps=2)
        where = points.situation(points.network(), precision=precision)
        where.task = Task("generation", target="x")
        return method, where

    plan, where = fresh(build)
    watch = Watch(where.student.model)
    for name in ("inputs", "generated", "student_loss", "selection"):
        watch.during(plan, name)
    heads = []
    plain = plan.generated
    object.__setattr__(plan, "generated", lambda batch: heads.append(plain(batch)) or heads[-1])
    Course(plan, where).run()
    assert {name: watch.seen[name] for name in ("inputs", "generated")} == {"inputs": half, "generated": half}
    assert {x.dtype for x in heads} == {torch.float32}
    assert watch.seen["selection"] == {torch.float32}


def test_validation_says_what_it_says_in_fp32():
    found = []
    for precision in ("bf16", "fp32"):
        plan, where = fresh(lambda p=precision: (Looks(), points.situation(precision=p)))
        course = Course(plan, where)
        stage = next(course._stages())
        made = course._enter(stage, None)
        batch = where.data.splits["validation"].__getitems__([0, 1, 2])
        found.append(plan.selection(batch).total())
        assert made.stepper.precision == precision
    assert torch.equal(*found)


@pytest.mark.parametrize("method", [lambda: DMD2(sampling_steps=2), Consistency])
def test_in_fp32_lending_changes_no_bit(method, monkeypatch):
    build = lambda: (method(), points.situation(points.network(), precision="fp32"))  # noqa: E731
    lending = finish(build).situation.student.model.state_dict()
    monkeypatch.setattr(trainer, "lent", lambda precision: nullcontext())
    plain = finish(build).situation.student.model.state_dict()
    assert all(torch.equal(lending[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "make", [lambda: OnPolicy(student_share=1.0, max_new_tokens=4), lambda: MiniLLM(max_new_tokens=4)]
)
def test_texts_are_written_in_the_runs_precision(make, monkeypatch):
    plan, where = fresh(lambda: (make(), writers.situation(precision="bf16")))
    for actor in (where.student, where.teacher):
        actor.model.whole = True
    products, plain = {}, nn.functional.linear
    watch = Watch(nn.Identity())
    watch.during(plan, "draw")
    watch.during(plan, "selection")

    def linear(*args):
        found = plain(*args)
        products.setdefault(watch.what, set()).add(found.dtype)
        return found

    monkeypatch.setattr(nn.functional, "linear", linear)
    Course(plan, where).run()
    assert products["draw"] == {torch.bfloat16}
    assert products["selection"] == {torch.float32}


def test_it_is_lent_for_a_block_and_a_nested_one_gives_it_back():
    product = lambda: (torch.ones(2, 2) @ torch.ones(2, 2)).dtype  # noqa: E731

    def asked():
        with in_precision():
            return product()

    assert asked() == torch.float32
    with lent(lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        assert asked() == torch.bfloat16
        assert product() == torch.float32
        with lent(nullcontext):
            assert asked() == torch.float32
        assert asked() == torch.bfloat16
    assert asked() == torch.float32
