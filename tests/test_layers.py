import pytest
import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError
from limbeck.layers import LayerTransfer, classifier_path, embedding_path, stages
from limbeck.losses import mse
from limbeck.objectives import Objective, Term
from limbeck.tasks import Task
from limbeck.teachers.mixture import Mixture


class Block(nn.Module):
    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv = nn.Conv2d(inside, out, 3, stride, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x))


class Pyramid(nn.Module):
    """Three resolutions of two blocks each, pooled, classified."""

    def __init__(self, width=4, classes=3):
        super().__init__()
        self.stem = Block(3, width, 1)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.fc(self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1))


class Former(nn.Module):
    """Patches, six blocks of one resolution, a head."""

    def __init__(self, depth=6, tuples=False):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(Mixer(tuples) for _ in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x.mean(1))


class Mixer(nn.Module):
    def __init__(self, tuples):
        super().__init__()
        self.norm, self.lin, self.tuples = nn.LayerNorm(8), nn.Linear(8, 8), tuples

    def forward(self, x):
        out = x + self.lin(self.norm(x))
        return (out, None) if self.tuples else out


def batch(n=2):
    g = torch.Generator().manual_seed(0)
    return {"x": torch.randn(n, 3, 8, 8, generator=g), "label": torch.arange(n) % 3}


def student(model):
    return Student(model, view="x")


def test_a_pyramid_gives_the_last_place_of_every_resolution_under_its_shortest_path():
    assert stages(student(Pyramid()), batch()) == ["layer1", "layer2"]
    assert stages(student(Pyramid()), batch(), most=1) == ["layer2"]
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    assert stages(student(flat), batch()) == ["1", "2"]


@pytest.mark.parametrize(("depth", "most", "expected"), [(6, 3, [1, 3, 5]), (6, 4, [1, 2, 4, 5]), (2, 4, [0, 1])])
def test_a_network_of_one_resolution_is_cut_into_equal_runs_of_blocks(depth, most, expected):
    assert stages(student(Former(depth)), batch(), most) == [f"blocks.{i}" for i in expected]


def test_blocks_that_return_tuples_are_heard_at_their_first_part():
    found = stages(student(Former(4, tuples=True)), batch(), 2)
    assert found == ["blocks.1.0", "blocks.3.0"]
    actor = student(Former(4, tuples=True)).tap("h", found[0])
    assert actor(batch())["h"].shape == (2, 4, 8)


def test_a_network_of_vectors_gives_what_goes_into_its_linear_layers():
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    assert stages(student(mlp), batch()) == ["3:input", "5:input"]
    with pytest.raises(RecipeError, match=r"no layers can be proposed for the student \(Sequential\).*method.layers="):
        stages(student(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))), batch())


def test_the_embedding_is_what_the_layer_of_the_logits_reads():
    assert embedding_path(student(Pyramid()), batch()) == "fc:input"

    class Auxiliary(nn.Module):  # a head of the same width is called after the one whose logits are returned
        def __init__(self):
            super().__init__()
            self.body, self.main, self.other = nn.Linear(192, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            h = self.body(x.flatten(1))
            return {"logits": self.main(h), "other": self.other(h)}

    assert classifier_path(student(Auxiliary()), batch()) == "main"
    with pytest.raises(RecipeError, match="no linear layer of the student"):
        classifier_path(student(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())), batch())


def test_looking_for_layers_leaves_the_network_as_it_was():
    model = nn.Sequential(Pyramid(), nn.Dropout(0.5)).train()
    model[0].eval()
    stages(student(model), batch())
    assert model.training
    assert model[1].training
    assert not model[0].training
    assert not any(m._forward_hooks for m in model.modules())


class Hints(LayerTransfer):
    def objective(self):
        return Objective(*(Term(mse, pair, name=f"hint{i}") for i, pair in enumerate(self.pairs)))


class Last(Hints):
    proposes = "map"


class Vector(Hints):
    proposes = "embedding"


def bound(method, ours, theirs, teacher=None):
    data = Data({"train": TensorSplit(batch(4))}, {"x": "", "label": ""}, {"label": ["a", "b", "c"]}, source="toy")
    teacher = teacher or Teacher(theirs, view="x")
    method.bind(ours, teacher, Task("classification", labels=["a", "b", "c"])).look_at(data)
    method.prepare()
    for actor in (ours, teacher):
        actor.probe(batch())
    method.setup()
    return method


def test_pairs_are_made_from_the_end_and_said_with_their_bridges():
    method = bound(Hints(), student(Pyramid(4)), Pyramid(6))
    assert method.pairs == [("layer1", "layer1"), ("layer2", "layer2")]
    assert "layer1 -> layer1, layer2 -> layer2" in method.notices[0]
    loss = method.transfer(method.student(batch()), method.teacher(batch()), batch())
    assert list(loss.parts) == ["hint0", "hint1"]
    assert bound(Hints(), student(Former()), Pyramid()).pairs == [("blocks.2", "layer1"), ("blocks.5", "layer2")]
    assert bound(Last(), student(Former()), Pyramid()).pairs == [("blocks.5", "layer2")]
    vector = bound(Vector(), student(Former()), Pyramid())
    assert vector.pairs == [("embedding", "embedding")]
    assert "head:input -> fc:input" in vector.notices[0]


def test_named_pairs_are_taken_as_they_are_given():
    spelled = [Hints(layers=["layer1"]), Hints(layers=[["layer1", "layer1"]]), Hints(layers="layer1")]
    assert all(bound(m, student(Pyramid()), Pyramid()).pairs == [("layer1", "layer1")] for m in spelled)
    assert spelled[0].options() == spelled[1].options() == spelled[2].options()
    tapped = Student(Pyramid(), view="x", taps={"deep": "layer2.1"})
    assert bound(Hints(layers=[["deep", "layer2"]]), tapped, Pyramid()).pairs == [("deep", "layer2")]
    with pytest.raises(RecipeError, match=r"tap 'layr1': Pyramid has no such place. Did you mean 'layer1'"):
        bound(Hints(layers=["layr1"]), student(Pyramid()), Pyramid())
    with pytest.raises(RecipeError, match="needed is a list of places, or of"):
        Hints(layers=[["a", "b", "c"]])


def test_layers_of_several_teachers_must_be_named():
    pair = Mixture({"a": Teacher(Pyramid(), view="x"), "b": Teacher(Pyramid(), view="x")})
    with pytest.raises(RecipeError, match=r"several teachers \(a, b\): name them"):
        bound(Hints(), student(Pyramid()), None, teacher=pair)
    assert bound(Hints(layers=[["layer2", "a.layer2"]]), student(Pyramid()), None, teacher=pair).pairs


def test_the_same_embedding_serves_two_methods_in_a_sum():
    total = Vector() + Hints()
    bound(total, student(Pyramid()), Pyramid())
    assert {"embedding", "layer1", "layer2"} <= total.teacher_reads()


def test_a_sequence_of_blocks_does_not_hide_the_last_one_behind_its_own_value():
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), nn.Sequential(*layers), nn.Flatten(), nn.Linear(24, 3))
    assert stages(student(model), batch(), 3) == ["2.0", "2.1", "2.2"]
    assert stages(student(model), batch(), 1) == ["2.2"]
