"""OFD: where its features and margins come from in networks of several makes, its sum, limit cases, and a restart."""

import pytest
import torch
from safetensors.torch import load_file
from small_images import CNN, ViT, data, in_halves, settled, situation
from torch import nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.errors import RecipeError
from limbeck.losses.overhaul import expected_negative, partial_l2
from limbeck.methods import find
from limbeck.methods.ofd import OFD
from limbeck.teachers.mixture import Mixture


class Block(nn.Module):
    """A residual block with one ReLU for both its places, in place, as torchvision's."""

    def __init__(self, channels, to, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, to, 3, stride, 1, bias=False), nn.BatchNorm2d(to)
        self.conv2, self.bn2 = nn.Conv2d(to, to, 3, 1, 1, bias=False), nn.BatchNorm2d(to)
        self.relu = nn.ReLU(inplace=True)
        same = channels == to and stride == 1
        self.down = None if same else nn.Sequential(nn.Conv2d(channels, to, 1, stride), nn.BatchNorm2d(to))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer1 = nn.Sequential(Block(1, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, 3)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Functional(nn.Module):
    """ReLUs that are no modules."""

    def __init__(self, width=4, norm=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.bn1, self.bn2 = (nn.BatchNorm2d(n) if norm else nn.GroupNorm(1, n) for n in (width, 2 * width))
        self.fc = nn.Linear(2 * width, 3)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def enliven(net: nn.Module) -> nn.Module:
    """Normalisations as after a training: other weights and biases in each channel."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.3)
    return net


PLACES = [
    (CNN, ["first.2:input", "second.2:input", "third.2:input"], ["first.1", "second.1", "third.1"]),
    (ResNet, ["layer1.1.relu:input", "layer2.0.relu:input"], ["layer1.1.bn2", "layer2.0.bn2"]),
    (Functional, ["bn1", "bn2"], ["bn1", "bn2"]),
]


@pytest.mark.parametrize(("net", "places", "norms"), PLACES)
def test_features_before_the_relu_and_their_normalisations_are_found(net, places, norms):
    where, method = situation(lambda: net(4), lambda: enliven(net(6))), OFD()
    batch = settled(method, where)
    assert [theirs for _, theirs in method.pairs] == places
    assert [ours for ours, _ in method.pairs] == places
    assert method.norm_paths == norms
    heard = where.teacher(batch)
    for i, (name, path) in enumerate(zip(places, norms)):
        assert (heard[name] < 0).any(), "a ReLU wrote over it"
        norm = where.teacher.model.get_submodule(path)
        assert torch.equal(method.get_buffer(f"margin{i}"), expected_negative(norm.bias.detach(), norm.weight.detach()))
    assert all(f"with {path}" in method.notices[-1] for path in norms)


def test_the_features_of_a_residual_block_are_those_after_the_addition():
    where, method = situation(ResNet, lambda: enliven(ResNet(6))), OFD()
    batch = settled(method, where)
    teacher = where.teacher.model.eval()
    block, x = teacher.layer1[1], teacher.layer1[0](batch["x"])
    expected = x + block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(where.teacher(batch)["layer1.1.relu:input"], expected)
    torch.testing.assert_close(where.teacher(batch, reads=method.teacher_reads())["layer1.1.relu:input"], expected)


def test_the_loss_is_the_papers_sum_with_halved_weights():
    where, method = situation(teacher=lambda: enliven(CNN(6))), OFD(weight=0.5, task_weight=0.0)
    batch = settled(method, where)
    method.eval()
    student, teacher = where.student(batch), where.teacher(batch)
    expected = 0.0
    for i, share in enumerate([0.25, 0.5, 1.0]):
        connected, theirs = method.connectors[i](student[method.pairs[i][0]]), teacher[method.pairs[i][1]]
        expected += share * partial_l2(connected, theirs, margin=method.get_buffer(f"margin{i}")).mean()
    torch.testing.assert_close(method.loss(batch).total(), 0.5 * expected)


def test_maps_of_other_sizes_are_pooled_to_the_smaller():
    pair = [["second", "first"], ["first", "second"]]
    where, method = situation(teacher=lambda: enliven(CNN(6))), OFD(layers=pair)
    batch = settled(method, where)
    method.eval()
    student, teacher = where.student(batch), where.teacher(batch)
    (s1, t1), (s2, t2) = method.pairs
    pool = nn.functional.avg_pool2d
    first = partial_l2(method.connectors[0](student[s1]), pool(teacher[t1], 2), margin=method.margin0)
    second = partial_l2(method.connectors[1](pool(student[s2], 2)), teacher[t2], margin=method.margin1)
    torch.testing.assert_close(method.transfer(student, teacher, batch).total(), (first / 2 + second).mean())


def test_a_student_below_the_margins_of_a_silent_teacher_learns_nothing():
    where, method = situation(), OFD(task_weight=0.0, weight=1.0)
    batch = settled(method, where)
    silent = {name: torch.full((8, *where.teacher.shapes[name]), -50.0) for _, name in method.pairs}
    for connector in method.connectors:
        nn.init.zeros_(connector[1].weight)
        nn.init.constant_(connector[1].bias, -60.0)
    loss = method.transfer(where.student(batch), silent, batch).total()
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in where.student.model.parameters())
    for connector in method.connectors:  # above the margin it is drawn to the margin, not to the teacher
        nn.init.zeros_(connector[1].bias)
    values = [
        share * method.get_buffer(f"margin{i}").square().sum() * where.teacher.shapes[name][1] ** 2
        for i, (share, (_, name)) in enumerate(zip((0.25, 0.5, 1.0), method.pairs))
    ]
    torch.testing.assert_close(method.transfer(where.student(batch), silent, batch).total(), sum(values))


def test_statistics_of_the_teacher_do_not_drift():
    where, method = situation(), OFD()
    batch = settled(method, where)
    before = {name: tensor.clone() for name, tensor in where.teacher.model.state_dict().items()}
    method.loss(batch).total().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in where.teacher.model.state_dict().items())
    assert all(p.grad is not None for p in method.connectors.parameters())


def test_normalisations_can_be_named_and_students_may_have_none():
    where = situation(lambda: Functional(norm=False), lambda: enliven(CNN(6)))
    method = OFD(layers=[["conv2", "third.0"]], norms=["third.1"])
    settled(method, where)
    assert method.pairs == [("conv2", "third.0")]
    assert method.norm_paths == ["third.1"]
    assert (method.margin0 < 0).all()
    vit = OFD()
    settled(vit, situation(ViT, lambda: enliven(CNN(6))))
    assert all(len(vit.student.shapes[ours]) == 2 for ours, _ in vit.pairs)  # tokens, laid out as a map


@pytest.mark.parametrize(
    ("teacher", "options", "told"),
    [
        (ViT, {"layers": [["third", "blocks.1"]]}, "of 'blocks.1' a batch normalisation was not found"),
        (lambda: Functional(norm=False), {}, "a batch normalisation was not found"),
        (CNN, {"norms": ["first.1"]}, "names 1 normalisations for 3 layers"),
        (
            CNN,
            {"norms": ["first.1", "second.1", "third.0"]},
            "third.0 is a Conv2d; needed is a batch normalisation of 16",
        ),
        (CNN, {"layers": [["first", "frist"]]}, "Did you mean 'first'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, options, told):
    with pytest.raises(RecipeError, match=told):
        settled(OFD(**options), situation(teacher=teacher))


def test_several_teachers_are_refused():
    where = situation()
    where.teacher = Mixture({"a": Teacher(CNN(), view="x"), "b": Teacher(CNN(), view="x")})
    with pytest.raises(RecipeError, match="ofd takes its margins from .* given are several teachers"):
        settled(OFD(), where)


def test_a_run_in_two_halves_is_the_run(tmp_path):
    make = lambda: (OFD(), situation(ResNet, lambda: enliven(ResNet(6)), epochs=2))  # noqa: E731
    whole, halves = in_halves(make, tmp_path)
    assert whole.keys() == halves.keys()
    assert {"method.margin0", "method.connectors.1.0.weight"} <= whole.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_it_runs_from_a_recipe_and_leaves_the_connectors_behind(tmp_path):
    run = limbeck.distill(
        task="classification",
        data=data(),
        teacher=Teacher(enliven(ResNet(6)), view="x"),
        student=Student(CNN(4), view="x"),
        method="ofd",
        train={"epochs": 1, "batch_size": 8},
        out=tmp_path / "run",
    )
    assert find("ofd") is OFD
    assert run.result["status"] == "finished"
    assert load_file(run.folder / "student/model.safetensors").keys() == CNN(4).state_dict().keys()
