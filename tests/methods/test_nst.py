import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Former, Pyramid, Vectors, keys, settled, situation

import limbeck
from limbeck.errors import RecipeError
from limbeck.losses.gram import nst
from limbeck.methods.nst import NST


def selected(method, batch):
    return method.transfer(method.student(batch), method.teacher(batch), batch).total()


def test_the_loss_is_the_tasks_and_fifty_times_the_polynomial_discrepancy_of_the_last_maps():
    where = situation()
    method = NST()
    batch = settled(method, where)
    ours, theirs = where.student(batch), where.teacher(batch)
    s, t = (F.normalize(x["layer3"].flatten(2), dim=2) for x in (ours, theirs))

    def kernel(a, b):
        return torch.einsum("bcp,bdp->bcd", a, b).square().mean()

    expected = F.cross_entropy(ours["logits"], batch["label"]) + 50 * (kernel(s, s) + kernel(t, t) - 2 * kernel(s, t))
    torch.testing.assert_close(method.loss(batch).total(), expected)
    assert not list(method.parameters())


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
def test_it_does_not_feel_which_neuron_of_the_student_is_which(kernel):
    where = situation(double=True)
    method = NST(kernel=kernel, layers=["layer3"])
    batch = settled(method, where)
    value = selected(method, batch)
    last = where.student.model.layer3.conv
    scale = torch.tensor([1.0, 2.0, 5.0, 0.1, 1.0, 9.0]).double()
    last.weight.data = last.weight.data[[3, 1, 5, 0, 4, 2]] * scale[:, None, None, None]
    last.bias.data = last.bias.data[[3, 1, 5, 0, 4, 2]] * scale
    torch.testing.assert_close(selected(method, batch), value)


def test_options_and_a_mask_column_reach_the_loss():
    where = situation()
    options = {"kernel": "gaussian", "bandwidth": 0.5}
    method = NST(layers=["layer2"], mask="counts", **options)
    batch = settled(method, where)
    signals = where.student(batch)["layer2"], where.teacher(batch)["layer2"]
    torch.testing.assert_close(selected(method, batch), nst(*signals, mask=batch["counts"], **options).mean())
    method = NST(layers=["layer2"], degree=3, offset=0.5)
    settled(method, where)
    torch.testing.assert_close(selected(method, batch), nst(*signals, degree=3, offset=0.5).mean())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(Pyramid(2), Pyramid(3)), (Former(6), Former(8)), (Former(), Pyramid(4)), (Pyramid(2), Former())],
)
def test_it_runs_from_python_between_maps_and_tokens(student, teacher, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method="nst", out=tmp_path / "run")
    assert '"selectivity0"' in (run.folder / "log.jsonl").read_text()


def test_layers_without_positions_are_refused_at_setup_with_both_shapes():
    with pytest.raises(
        RecipeError, match=r"\[5\] to the teacher's \[9\].*neuron selectivity transfer compares positions"
    ):
        settled(NST(), situation(Vectors(5), Vectors(9)))
    with pytest.raises(RecipeError, match="degree"):
        NST(degree=0)
