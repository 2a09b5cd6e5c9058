import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Former, Pyramid, Vectors, keys, settled, situation
from safetensors.torch import load_file
from torch import nn

import limbeck
from limbeck.errors import RecipeError
from limbeck.method import Loss
from limbeck.methods.fitnets import FitNets
from limbeck.methods.kd import KD


def hint(method: FitNets, batch: dict) -> Loss:
    return method.transfer(method.student(batch), method.teacher(batch), batch)


def test_the_loss_is_the_tasks_and_the_mean_square_through_a_convolution_that_learns():
    where = situation()
    method = FitNets(weight=100.0, task_weight=0.5)
    batch = settled(method, where)
    assert method.pairs == [("layer2", "layer2")]  # the middle one of three
    signals = where.student(batch)
    convolution = method.terms.bridges["hint0"].map
    ours = (
        torch.einsum("dc,bchw->bdhw", convolution.weight[..., 0], signals["layer2"]) + convolution.bias[:, None, None]
    )
    square = (ours - where.teacher(batch)["layer2"]).square().sum() / ours.numel()
    expected = 0.5 * F.cross_entropy(signals["logits"], batch["label"]) + 100 * square
    torch.testing.assert_close(method.loss(batch).total(), expected)
    assert {id(p) for p in convolution.parameters()} <= {
        id(p) for m in method.trainees()["student"] for p in m.parameters()
    }


def test_equal_networks_are_no_distance_apart_and_have_no_bridge():
    where = situation(Pyramid(2), Pyramid(2))
    where.student.model.load_state_dict(where.teacher.model.state_dict())
    method = FitNets(layers=["layer1", "layer2", "layer3", "fc"])
    batch = settled(method, where)
    assert not list(method.parameters())
    assert hint(method, batch).total().item() == 0
    assert list(hint(method, batch).parts) == ["hint0", "hint1", "hint2", "hint3"]


def test_the_gradient_is_that_of_the_mean_over_all_entries():
    where = situation(Pyramid(2), Pyramid(2), double=True)
    method = FitNets(layers=["layer1"])
    batch = settled(method, where)
    ours, theirs = where.student(batch)["layer1"], where.teacher(batch)["layer1"]
    weight = where.student.model.layer1.conv.weight
    (expected,) = torch.autograd.grad(ours, weight, grad_outputs=2 * (ours - theirs).detach() / ours.numel())
    (found,) = torch.autograd.grad(hint(method, batch).total(), weight)
    torch.testing.assert_close(found, expected)
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_a_mask_column_counts_the_teachers_positions():
    where = situation(Pyramid(2), Pyramid(2))
    method = FitNets(layers=["layer2"], mask="counts")
    batch = settled(method, where)
    gap = (where.student(batch)["layer2"] - where.teacher(batch)["layer2"]).square().mean(1)
    expected = torch.stack([g[m].mean() for g, m in zip(gap, batch["counts"])]).mean()
    torch.testing.assert_close(hint(method, batch).total(), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "layers"),
    [
        (Former(), Pyramid(4), None),
        (Pyramid(2), Former(), [["layer2", "blocks.1"], ["layer3", "fc:input"]]),
        (Vectors(5), Vectors(9), None),
        (Vectors(5), Pyramid(2), [["fc2", "layer3"]]),
    ],
)
def test_it_runs_between_maps_tokens_and_vectors(student, teacher, layers, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method=FitNets(layers=layers), out=tmp_path / "run")
    assert '"hint0"' in (run.folder / "log.jsonl").read_text()
    shipped = load_file(run.folder / "student" / "model.safetensors")
    assert shipped.keys() == student.state_dict().keys()  # the bridge stays behind


def test_layers_that_no_bridge_joins_are_refused_at_setup_with_both_shapes():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.fold, self.fc = nn.Unflatten(1, (2, 4, 4, 2)), nn.Linear(64, 3)

        def forward(self, x):
            return self.fc(self.fold(x.flatten(1)).flatten(1))

    with pytest.raises(RecipeError, match=r"student's \[2, 4, 4, 2\] to the teacher's \[4, 8, 8\].*volumes go to"):
        settled(FitNets(layers=[["fold", "layer1"]]), situation(Volume()))


def test_in_a_sum_the_task_counts_once_and_options_are_checked(tmp_path):
    where = situation()
    total = KD() + FitNets()
    batch = settled(total, where)
    assert list(total.loss(batch).parts) == ["kl", "hint0", "task"]
    assert total.members["fitnets"].weight == 100
    with pytest.raises(RecipeError, match=r"unknown key 'layer' of fitnets. Did you mean 'layers'"):
        FitNets(layer="layer1")
