"""MST-Distill: the six properties (a) to (f) of its specification, and what surrounds them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import Course, settle
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stepper import Stepper
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.method import Progress
from limbeck.methods.mst_distill import CoTraining, Gate, MaskNet, MaskTraining, MSTDistill, Routing
from limbeck.tasks import Task
from limbeck.teachers.mixture import Mixture

TASK = Task("classification", labels=["a", "b", "c", "d"])


class Net(nn.Module):
    def __init__(self, inputs: int, norm: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(inputs, 12)
        self.norm = nn.BatchNorm1d(12) if norm else nn.Identity()
        self.fc2 = nn.Linear(12, 9)
        self.out = nn.Linear(9, 4)

    def forward(self, *x):
        return self.out(self.fc2(self.norm(self.fc1(torch.cat(x, 1))).relu()).relu())


def data(n: int = 24) -> Data:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (n,), generator=g)
    columns = {
        "x": torch.randn(n, 5, generator=g) + y[:, None],
        "a": torch.randn(n, 3, generator=g) - y[:, None],
        "label": y,
    }
    split = TensorSplit(columns)
    return Data(
        {"train": split, "validation": split},
        {"x": "", "a": "", "label": ""},
        {"label": ["a", "b", "c", "d"]},
        source="toy",
    )


def situation(**train) -> Situation:
    torch.manual_seed(0)
    teachers = Mixture({"both": Teacher(Net(8, norm=True), view=["x", "a"]), "other": Teacher(Net(3), view="a")})
    train = {"epochs": 1, "batch_size": 8} | train
    return Situation(Student(Net(5, norm=True), view="x"), teachers, TASK, data(), TrainSettings(**train))


def routing(k: int = 1, **options) -> tuple[Routing, Situation, dict]:
    where = situation()
    layers = {"both": {"fc1": "fc1", "fc2": "fc2"}, "other": {"fc1": "fc1", "fc2": "fc2"}}
    masks = MaskTraining(layers, {"heads": 3})
    settle(masks, where)
    method = Routing(masks, k=k, **options)
    settle(method, where)
    for module in (where.student.model, method, *(t.model for t in where.teacher.members.values())):
        module.eval()
    return method, where, where.data["train"].__getitems__(list(range(10)))


def gradients(method, batch, of):
    loss = method.loss(batch).total()
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(of, torch.autograd.grad(loss, of, allow_unused=True))
    ]


def test_a_with_all_experts_chosen_the_student_does_not_feel_the_gate_but_for_the_balance():
    method, where, batch = routing(k=4, balance_weight=0.0)
    of = list(where.student.model.parameters())
    before = gradients(method, batch, of)
    nn.init.normal_(method.gate.layers[0].weight)
    for one, other in zip(before, gradients(method, batch, of)):
        torch.testing.assert_close(one, other)
    assert sum(g.abs().sum() for g in before) > 0


def test_a_with_balance_the_student_feels_the_gate():
    method, where, batch = routing(k=4, balance_weight=1.0)
    of = list(where.student.model.parameters())
    before = gradients(method, batch, of)
    nn.init.normal_(method.gate.layers[0].weight)
    assert any(not torch.allclose(one, other) for one, other in zip(before, gradients(method, batch, of)))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_b_the_hard_router_learns_from_the_balance_alone(k):
    method, _, batch = routing(k=k, balance_weight=0.0)
    assert all(float(g.abs().max()) == 0.0 for g in gradients(method, batch, list(method.gate.parameters())))
    method, _, batch = routing(k=k, balance_weight=1.0)
    assert any(float(g.abs().max()) > 0.0 for g in gradients(method, batch, list(method.gate.parameters())))


@pytest.mark.parametrize("router", ["weighted", "straight-through"])
def test_the_extensions_let_the_router_learn_from_the_divergences(router):
    method, _, batch = routing(k=2, router=router, balance_weight=0.0)
    assert any(float(g.abs().max()) > 0.0 for g in gradients(method, batch, list(method.gate.parameters())))


def test_straight_through_has_the_hard_routers_value():
    soft, _, batch = routing(k=2, router="straight-through")
    hard, _, _ = routing(k=2)
    hard.load_state_dict(soft.state_dict())
    torch.testing.assert_close(soft.loss(batch).total(), hard.loss(batch).total())


@pytest.mark.parametrize("balance", ["kl", "cv"])
def test_c_the_balance_is_zero_exactly_when_the_mean_gate_is_uniform(balance):
    method, _, batch = routing(balance=balance)
    for layer in method.gate.layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert float(method.loss(batch).parts["balance"].value({"gates": torch.full((6, 4), 0.25)})) == pytest.approx(
        0.0, abs=1e-7
    )
    lopsided = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).repeat(6, 1)
    assert float(method.loss(batch).parts["balance"].value({"gates": lopsided})) > 1e-4


def test_d_a_mask_of_ones_is_the_plain_teacher():
    method, where, batch = routing()
    for mask in method.experts.masks:
        nn.init.zeros_(mask.judge.weight)
        nn.init.constant_(mask.judge.bias, 100.0)  # sigmoid(100) is 1 in fp32
    for i, (teacher, _) in enumerate(method.experts.names):
        assert torch.equal(method.experts.logits(i, batch), where.teacher.members[teacher](batch)["logits"])


def test_e_a_mask_step_leaves_teachers_and_student_bitwise_unchanged():
    where = situation()
    method = MaskTraining({"both": {"fc1": "fc1"}, "other": {"fc2": "fc2"}}, {"heads": 3})
    settle(method, where)
    networks = [where.student.model, *(t.model for t in where.teacher.members.values())]
    before = [copy.deepcopy(n.state_dict()) for n in networks]
    masks = copy.deepcopy(method.experts.state_dict())
    with Stepper(method, where.settings, World()) as stepper, torch.no_grad():
        batch = where.data["train"].__getitems__(list(range(8)))
        play = method.learn(batch, Progress())
        update = next(play)
        for _ in range(2):
            outcome, _, made = stepper.perform(update, Progress())
            assert made
            try:
                update = play.send(outcome)
            except StopIteration:
                break
    for network, old in zip(networks, before):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, old[name]), name
    assert any(not torch.equal(tensor, masks[name]) for name, tensor in method.experts.state_dict().items())


def test_each_mask_has_a_gradient_of_its_own_term_only():
    where = situation()
    method = MaskTraining({"both": {"fc1": "fc1", "fc2": "fc2"}, "other": {}}, {"heads": 3})
    settle(method, where)
    batch = where.data["train"].__getitems__(list(range(8)))
    batch["student_logits"] = where.student(batch)["logits"].detach()
    grads = torch.autograd.grad(
        method.drift(0, batch).total(), list(method.experts.masks[1].parameters()), allow_unused=True
    )
    assert all(g is None for g in grads)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 8))
def test_f_the_pair_term_is_symmetric(seed, temperature):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g)
    method = CoTraining(temperature=temperature)
    torch.testing.assert_close(method.pair(a, b), method.pair(b, a))
    torch.testing.assert_close(method.pair(a, a), torch.zeros(3))


def test_hard_routing_equals_a_loop_over_samples():
    method, _, _ = routing(k=2)
    logits, gate = torch.randn(10, 4), torch.rand(10, 4).softmax(-1)
    experts = [torch.randn(10, 4) for _ in range(4)]
    slow = []
    for i in range(10):
        best = sorted(range(4), key=lambda e: -float(gate[i, e]))[:2]
        slow.append(sum(float(kl(logits[i : i + 1], experts[e][i : i + 1], temperature=4.0)) for e in best) / 2)
    chosen = gate.topk(2, dim=1).indices
    theirs = torch.stack(experts, dim=1).gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
    torch.testing.assert_close(method.routed(logits, theirs, gate.gather(1, chosen)), torch.tensor(slow))


def test_experts_that_are_asked_about_their_own_samples_say_what_they_say_about_all():
    method, _, batch = routing()
    picks = torch.tensor([[0, 1], [3, 2], [1, 3]] + [[2, 0]] * 7)
    everything = torch.stack([method.experts.logits(i, batch) for i in range(4)], dim=1)
    expected = everything.gather(1, picks.unsqueeze(-1).expand(-1, -1, 4))
    torch.testing.assert_close(method.experts.chosen(picks, batch), expected, rtol=1e-5, atol=1e-6)


def test_accumulate_masks_the_second_expert_at_both_layers_and_isolated_at_its_own():
    isolated, where, batch = routing()
    stacked, _, _ = routing(accumulate=True)
    stacked.load_state_dict(isolated.state_dict())
    stacked.experts.teachers = where.teacher.members
    assert torch.equal(stacked.experts.logits(0, batch), isolated.experts.logits(0, batch))
    both = where.teacher.members["both"]
    first, second = isolated.experts.masks[0], isolated.experts.masks[1]
    expected = both(batch, replace={"fc1": lambda h: h * first(h), "fc2": lambda h: h * second(h)})["logits"]
    assert torch.equal(stacked.experts.logits(1, batch), expected)
    assert torch.equal(
        isolated.experts.logits(1, batch), both(batch, replace={"fc2": lambda h: h * second(h)})["logits"]
    )


@pytest.mark.parametrize("shape", [(12,), (7, 5), (6, 8, 8), (6, 4, 4, 4), (120, 1, 1), (2,)])
def test_masks_fit_features_of_every_shape(shape):
    mask = MaskNet(shape).eval()
    feature = torch.randn(3, *shape)
    values = mask(feature).detach()
    assert values.shape[:2] == (3, shape[0])
    assert (feature * values).shape == feature.shape
    assert float(values.min()) > 0
    assert float(values.max()) < 1


def test_mask_width_follows_the_published_rule():
    assert MaskNet((596,)).judge.in_features == (596 // 6) * 3 == 297
    assert MaskNet((4,)).judge.in_features == 3
    assert MaskNet((596,), width=12).judge.in_features == 12


def test_the_gate_of_a_dense_task_gives_one_choice_per_image():
    gate = Gate((5, 8, 8), 4)(torch.randn(2, 5, 8, 8))
    torch.testing.assert_close(gate.sum(1), torch.ones(2))


def test_masks_move_the_teachers_towards_the_student():
    where = situation(epochs=30, batch_size=24, lr=1e-2, schedule="constant", select="last")
    method = MaskTraining({"both": {"fc1": "fc1"}, "other": {"fc1": "fc1"}}, {"heads": 3})
    settle(method, where)
    whole = where.data["train"].__getitems__(list(range(24)))
    before = float(method.selection(whole).total().detach())
    Course(method, where).run()
    assert float(method.selection(whole).total().detach()) < before


def test_three_stages_with_their_published_weights():
    where = situation()
    course = Course(MSTDistill(), where)
    assert [r.name for r in course.run()] == ["cotraining", "masks", "routing"]
    method = course.methods[-1]
    at = [method.weight(Progress(epoch=e, epochs=100)) for e in (0, 1, 30, 31, 61)]
    assert at == [1.0, 0.5, 0.5, 0.25, 0.125]
    at = [method.balance_weight(Progress(epoch=e, epochs=100)) for e in (0, 1, 10, 11)]
    assert at == pytest.approx([1.0, 0.9, 0.9, 0.81])
    found = method.findings(lambda: iter([where.data["train"].__getitems__(list(range(24)))]))
    assert [f["kind"] for f in found] == ["heatmap", "bars"]
    assert all(sum(row) == pytest.approx(1.0) for row in found[0]["values"])


def test_given_teachers_may_skip_the_cotraining():
    where = situation()
    before = copy.deepcopy(where.teacher.members["both"].model.state_dict())
    course = Course(MSTDistill(cotraining={"epochs": 0}), where)
    assert [r.name for r in course.run()] == ["masks", "routing"]
    assert all(torch.equal(t, before[n]) for n, t in where.teacher.members["both"].model.state_dict().items())


def test_refusals_are_sentences():
    where = situation()
    with pytest.raises(RecipeError, match="k is 5; there are 4 specialised teachers"):
        Course(MSTDistill(k=5), where).run()
    with pytest.raises(RecipeError, match="Did you mean 'both'"):
        Course(MSTDistill(masks={"bothe": ["fc1"]}), situation()).run()
    with pytest.raises(RecipeError, match="cannot be added to anything"):
        MSTDistill() + MSTDistill()
