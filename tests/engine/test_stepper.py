"""One update: who learns, with which rate, clip and precision; what happens when a number is not finite."""

import copy
import math

import pytest
import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import optimisers
from limbeck.engine.course import Course, settle
from limbeck.engine.ema import MovingAverage
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stepper import NonFiniteError, Stepper
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method, Progress, Update
from limbeck.methods.kd import KD
from limbeck.methods.supervised import Supervised
from limbeck.objectives import Loss
from limbeck.tasks import Task

PLAIN = {"optimizer": "sgd", "schedule": "constant", "clip": None, "weight_decay": 0.0, "lr": 0.1}


def net(width=4):
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def rows(count=20, first=0):
    g = torch.Generator().manual_seed(first)
    return TensorSplit(
        {"x": torch.randn(count, 4, generator=g), "label": torch.randint(0, 3, (count,), generator=g)}, first
    )


class Critic(Method):
    """A student and a critic."""

    card = Card("critic-test")

    def setup(self):
        self.critic = nn.Linear(3, 1)

    def trainees(self):
        return {"student": [self.student.model], "critic": [self.critic]}

    def learn(self, batch, progress):
        yield Update("critic", self.judge, batch)
        yield Update("student", self.loss, batch)

    def judge(self, batch):
        return Loss.mean("judge", self.critic(self.student(batch)["logits"]).squeeze(1).square())

    def loss(self, batch):
        logits = self.student(batch)["logits"]
        loss = Loss.mean("task", cross_entropy(logits, batch["label"])) + Loss.mean(
            "fool", self.critic(logits).squeeze(1)
        )
        return loss + Loss.mean("kl", kl(logits, self.teacher(batch)["logits"]))


def ready(method, *, teacher=True, **train):
    torch.manual_seed(0)
    student, guide = Student(net(), view="x"), Teacher(net(), view="x") if teacher else None
    where = Situation(
        student, guide, Task("classification"), Data({"train": rows()}), TrainSettings(**(PLAIN | train)), 3
    )
    settle(method, where)
    return method, where


def perform(stepper, update, step=0, **more):
    with torch.no_grad():
        return stepper.perform(update, Progress(step, 10), **more)


def batch(count=20):
    return rows(count).__getitems__(range(count))


def test_only_the_trainee_learns_and_requires_grad_is_given_back():
    method, where = ready(Critic())
    student, teacher = where.student.model, where.teacher.model
    student[0].bias.requires_grad_(False)
    everything = {"student": student, "critic": method.critic, "teacher": teacher}
    flags = {name: [p.requires_grad for p in m.parameters()] for name, m in everything.items()}
    with Stepper(method, where.settings, World()) as stepper:
        for trainee, function in (("critic", method.judge), ("student", method.loss), ("critic", method.judge)):
            before = {name: copy.deepcopy(m.state_dict()) for name, m in everything.items()}
            perform(stepper, Update(trainee, function, batch()))
            for name, module in everything.items():
                moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[name][n])}
                own = {n for n, p in module.named_parameters() if name == trainee and n != "0.bias"}
                assert moved == own, (trainee, name)
                assert name == trainee or all(p.grad is None for p in teacher.parameters())
        assert teacher.training is False
        assert student.training is True
    assert {name: [p.requires_grad for p in m.parameters()] for name, m in everything.items()} == flags
    assert not any(m.training for module in everything.values() for m in module.modules())


def test_requires_grad_is_given_back_also_when_a_step_fails():
    method, where = ready(Critic())

    def broken(batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Stepper(method, where.settings, World()) as stepper:
        perform(stepper, Update("critic", broken, batch()))
    assert all(p.requires_grad for p in (*where.student.model.parameters(), *where.teacher.model.parameters()))


def test_each_trainee_has_its_own_optimiser_and_rate():
    trainees = {
        "critic": {"lr": 0.03, "optimizer": {"use": "adam", "betas": [0.5, 0.9]}, "schedule": "cosine", "clip": 2}
    }
    method, where = ready(Critic(), trainees=trainees, warmup=4)
    with Stepper(method, where.settings, World()) as stepper:
        critic, student = stepper.trainees["critic"], stepper.trainees["student"]
        assert isinstance(critic.optimizer, torch.optim.Adam)
        assert critic.optimizer.param_groups[0]["betas"] == (0.5, 0.9)
        assert isinstance(student.optimizer, torch.optim.SGD)
        for step in (0, 5):
            perform(stepper, Update("critic", method.judge, batch()), step)
            perform(stepper, Update("student", method.loss, batch()), step)
            rise = min(1.0, (step + 1) / 4)
            cosine = 0.5 * (1 + math.cos(math.pi * step / 10))
            assert critic.optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * rise * cosine)
            assert student.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * rise)


def test_a_method_knows_how_fast_its_critic_learns_unless_it_is_told():
    class Eager(Critic):
        def lr_ratios(self):
            return {"critic": 5.0}

    def rates(**train):
        method, where = ready(Eager(), **train)
        stepper = Stepper(method, where.settings, World())
        return {name: trainee.settings.lr for name, trainee in stepper.trainees.items()}

    assert rates(lr=0.1) == {"student": 0.1, "critic": 0.5}
    assert rates(lr=0.1, trainees={"critic": {"clip": 1.0}}) == {"student": 0.1, "critic": 0.5}
    assert rates(lr=0.1, trainees={"critic": {"lr": 0.3}}) == {"student": 0.1, "critic": 0.3}


@pytest.mark.parametrize("clip", [0.01, 0.3, 1e3])
def test_the_clip_is_torchs(clip):
    method, where = ready(Supervised(), teacher=False, clip=clip)
    where.student.model[2].p = 0.0
    twin = copy.deepcopy(where.student.model)
    with Stepper(method, where.settings, World()) as stepper:
        outcome, _, _ = perform(stepper, Update("student", method.loss, batch()))
    nn.functional.cross_entropy(twin(batch()["x"]), batch()["label"]).backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), clip)
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert outcome.grad_norm == pytest.approx(float(norm))
    for ours, theirs in zip(where.student.model.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_average_is_its_closed_form():
    model = nn.Linear(2, 2)
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))
    average, expected = MovingAverage(model, 0.5), model.weight.detach().clone()
    for n in range(1, 8):
        with torch.no_grad():
            model.weight += torch.randn(2, 2)
            model.count += 1
        average.update()
        keep = min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * model.weight
        torch.testing.assert_close(average.average["weight"], expected)
    assert int(average.average["count"]) == 7  # what is no number with a point is copied
    own = model.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.weight, expected)
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert torch.equal(model.weight, own)
    again = MovingAverage(copy.deepcopy(model), 0.5)
    again.load_state_dict(average.state_dict())
    assert again.updates == 7
    assert torch.equal(again.average["weight"], average.average["weight"])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_precision_holds_inside_the_loss_function_alone(precision, dtype):
    seen = {}

    class Watching(KD):
        def learn(self, batch, progress):
            seen["learn"] = self.student(batch)["logits"].dtype
            yield Update("student", self.loss, batch)
            seen["after"] = self.student(batch)["logits"].dtype

        def loss(self, batch):
            seen["loss"] = self.student(batch)["logits"].dtype
            return super().loss(batch)

    method, where = ready(Watching(), precision=precision)
    where.student.model[2].p = 0.0
    plain, plain_where = ready(KD())
    plain_where.student.model[2].p = 0.0
    with Stepper(method, where.settings, World()) as stepper, Stepper(plain, plain_where.settings, World()) as other:
        play = method.learn(batch(), Progress())
        with torch.no_grad():
            outcome, _, made = stepper.perform(next(play), Progress(0, 10))
            with pytest.raises(StopIteration):
                play.send(outcome)
        expected, _, _ = perform(other, Update("student", plain.loss, batch()))
    assert seen == {"learn": torch.float32, "loss": dtype, "after": torch.float32}
    assert made
    assert all(p.dtype == torch.float32 for p in where.student.model.parameters())
    tolerance = {"fp32": 1e-6, "fp16": 5e-3, "bf16": 3e-2}[precision]
    assert outcome.values == pytest.approx(expected.values, rel=tolerance)
    assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=tolerance)
    for ours, theirs in zip(where.student.model.parameters(), plain_where.student.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 * tolerance)


def test_a_scale_that_is_too_large_is_lowered_and_the_step_left_out():
    method, where = ready(Supervised(), teacher=False, precision="fp16")
    with Stepper(method, where.settings, World()) as stepper:
        scaler = stepper.trainees["student"].scaler
        scaler.scale(torch.ones(()))
        scaler.update(2.0**40)  # so that gradients overflow in fp16
        before = copy.deepcopy(where.student.model.state_dict())
        _, _, made = perform(stepper, Update("student", method.loss, batch()))
        assert not made
        assert scaler.get_scale() == 2.0**39
        assert stepper.trainees["student"].skipped == 1
        assert all(torch.equal(t, before[n]) for n, t in where.student.model.state_dict().items())
        scaler.update(2.0**10)
        _, _, made = perform(stepper, Update("student", method.loss, batch()))
        assert made


BAD = {
    "a part of the loss": (
        lambda m, b: Loss.mean("worse", m(b)["logits"].sum(1) * math.inf),
        "the part 'worse' of the loss",
    ),
    "a gradient": (lambda m, b: Loss.mean("root", (m(b)["logits"] * 0).sum(1).sqrt()), "the gradient of 'student'"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("pieces", [1, 3])
def test_what_is_not_finite_stops_and_leaves_the_weights_alone(kind, pieces):
    make, sentence = BAD[kind]
    method, where = ready(Supervised(), teacher=False, optimizer="adamw")
    with Stepper(method, where.settings, World(), pieces=pieces) as stepper:
        perform(stepper, Update("student", method.loss, batch()))
        before = copy.deepcopy(where.student.model.state_dict())
        moments = copy.deepcopy(stepper.trainees["student"].optimizer.state_dict())

        def bad(b):
            return method.task.loss(where.student(b), b) + make(where.student, b)

        with pytest.raises(NonFiniteError, match=sentence) as error:
            perform(stepper, Update("student", bad, batch(6)), step=4)
        assert "step 4" in str(error.value)
        assert "0, 1, 2, 3, 4, 5" in str(error.value)
        assert (error.value.step, error.value.ids) == (4, [0, 1, 2, 3, 4, 5])
        assert all(torch.equal(t, before[n]) for n, t in where.student.model.state_dict().items())
        after = stepper.trainees["student"].optimizer.state_dict()["state"]
        for i, state in moments["state"].items():
            assert all(torch.equal(v, after[i][k]) for k, v in state.items())


def test_what_is_not_finite_can_be_skipped_and_is_counted():
    method, where = ready(Supervised(), teacher=False, on_nonfinite="skip")
    with Stepper(method, where.settings, World()) as stepper:
        before = copy.deepcopy(where.student.model.state_dict())
        for expected in (1, 2):
            bad = Update("student", lambda b: BAD["a gradient"][0](where.student, b), batch())
            _, _, made = perform(stepper, bad)
            assert not made
            assert stepper.trainees["student"].skipped == expected
        assert all(torch.equal(t, before[n]) for n, t in where.student.model.state_dict().items())
        assert perform(stepper, Update("student", method.loss, batch()))[2]


def test_shares_and_gradient_norms_of_terms_are_told():
    method, where = ready(Critic())
    with Stepper(method, where.settings, World()) as stepper:
        torch.manual_seed(1)
        outcome, terms, _ = perform(stepper, Update("student", method.loss, batch()), measure=True)
    assert terms.keys() == outcome.values.keys() == {"task", "fool", "kl"}
    assert sum(term["share"] for term in terms.values()) == pytest.approx(1.0)
    torch.manual_seed(0)
    _, fresh = ready(Critic())  # the same weights again
    model = fresh.student.model.train()
    torch.manual_seed(1)
    task = nn.functional.cross_entropy(model(batch()["x"]), batch()["label"])
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(task, list(model.parameters()))]).norm()
    assert terms["task"]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize(
    ("trainees", "sentence"),
    [
        (lambda m: {"student": [m.student]}, r"holds a Student; give its network: student\.model"),
        (lambda m: {"student": [nn.Linear(2, 2)]}, r"no checkpoint would hold them\. Make their module an attribute"),
        (lambda m: {"student": [nn.ReLU()]}, "has no parameter that learns"),
    ],
)
def test_trainees_that_cannot_be(trainees, sentence):
    method, where = ready(Supervised(), teacher=False)
    object.__setattr__(method, "trainees", lambda: trainees(method))
    with pytest.raises(RecipeError, match=sentence):
        Stepper(method, where.settings, World())


def test_settings_for_a_trainee_that_is_not_there():
    method, where = ready(Critic(), trainees={"crtic": {"lr": 1.0}})
    with pytest.raises(RecipeError, match=r"names 'crtic', .* Did you mean 'critic'\?"):
        Stepper(method, where.settings, World())


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        (lambda m: Update("crtic", m.judge, batch()), r"yields an update of 'crtic'\. Did you mean 'critic'\?"),
        (lambda m: Update("critic", m.judge, batch(), whole=True), "is whole: .* 3 pieces"),
        (
            lambda m: Update("critic", m.judge, batch() | {"odd": torch.zeros(3)}),
            "different numbers of samples: .* odd 3",
        ),
        (lambda m: Update("critic", lambda b: torch.zeros(3), batch()), r"gives a Loss .* not a Tensor"),
        (lambda m: Update("critic", lambda b: Loss(), batch()), "without parts"),
        (
            lambda m: Update("critic", lambda b: Loss.mean("a", b["x"].sum(1)), batch()),
            "does not depend on any parameter",
        ),
    ],
)
def test_updates_that_cannot_be(update, sentence):
    method, where = ready(Critic())
    with Stepper(method, where.settings, World(), pieces=3) as stepper, pytest.raises(Exception, match=sentence):
        perform(stepper, update(method))


def test_optimisers_by_name():
    p = [nn.Parameter(torch.ones(2))]
    made = optimisers.build(p, TrainSettings(optimizer={"use": "AdamW", "betas": [0.8, 0.9]}, lr=0.2, weight_decay=0.3))
    assert isinstance(made, torch.optim.AdamW)
    assert {k: made.param_groups[0][k] for k in ("lr", "weight_decay", "betas")} == {
        "lr": 0.2,
        "weight_decay": 0.3,
        "betas": (0.8, 0.9),
    }
    with pytest.raises(RecipeError, match=r"unknown optimizer 'adamz'\. Did you mean 'adam"):
        optimisers.build(p, TrainSettings(optimizer="adamz"))
    published = optimisers.build(p, TrainSettings(optimizer={"use": "adam", "betas": [0, 0.99]}))
    assert published.param_groups[0]["betas"] == (0.0, 0.99)
    with pytest.raises(RecipeError, match=r"unknown key 'train\.optimizer\.beta' of adamw\. Did you mean 'betas'\?"):
        optimisers.build(p, TrainSettings(optimizer={"use": "adamw", "beta": 1}))


def test_an_attribute_that_changes_is_refused_with_the_way_out():
    class Counting(KD):
        def setup(self):
            super().setup()
            self.seen = 0

        def learn(self, batch, progress):
            self.seen += 1
            yield Update("student", self.loss, batch)

    _, where = ready(KD())
    with pytest.raises(RecipeError, match=r"Counting\.seen changed during the first step, .*register_buffer"):
        Course(Counting(), where).run()


def test_the_average_follows_the_student_whatever_its_trainee_is_called():
    class Renamed(Supervised):
        def trainees(self):
            return {"net": [self.student.model]}

        def learn(self, batch, progress):
            yield Update("net", self.loss, batch)

    found = []
    for method in (Supervised(), Renamed()):
        _, where = ready(Supervised(), teacher=False, ema=0.5, epochs=3, batch_size=5)
        torch.manual_seed(1)
        Course(method, where).run()
        found.append(where.student.model.state_dict())
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
