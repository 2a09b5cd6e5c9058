import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Former, Pyramid, Vectors, keys, settled, situation

import limbeck
from limbeck.errors import RecipeError
from limbeck.losses.gram import ickd
from limbeck.methods.ickd import ICKD


def correlated(method, batch):
    return method.transfer(method.student(batch), method.teacher(batch), batch).total()


def test_the_loss_is_the_tasks_and_the_squared_gap_of_the_correlations():
    where = situation()
    method = ICKD()
    batch = settled(method, where)
    ours, theirs = where.student(batch), where.teacher(batch)["layer3"].flatten(2)
    mapped = method.terms.bridges["correlation0"](ours["layer3"]).flatten(2)
    gap = F.normalize(mapped @ mapped.mT, dim=2) - F.normalize(theirs @ theirs.mT, dim=2)
    published = gap.square().sum() / (12 * len(theirs))
    torch.testing.assert_close(
        method.loss(batch).total(), F.cross_entropy(ours["logits"], batch["label"]) + 2.5 * published
    )
    assert any("a 1x1 convolution from 6 to 12 channels" in said for said in method.notices)


def test_maps_of_other_sizes_are_compared_without_being_resampled():
    where = situation(Pyramid(4), Pyramid(4))
    method = ICKD(layers=[["layer2", "layer1"]])
    batch = settled(method, where)
    bridge = method.terms.bridges["correlation0"]
    mapped = bridge(where.student(batch)["layer2"])
    assert mapped.shape == (8, 4, 4, 4)  # the teacher's channels at the student's own positions
    torch.testing.assert_close(correlated(method, batch), ickd(mapped, where.teacher(batch)["layer1"]).mean())


def test_the_same_network_teaches_nothing():
    where = situation(Pyramid(2), Pyramid(2))
    where.student.model.load_state_dict(where.teacher.model.state_dict())
    method = ICKD(layers=["layer2", "layer3"], task_weight=0)
    loss = method.loss(settled(method, where)).total()
    assert not list(method.parameters())
    assert loss.item() == 0
    assert all(float(g.abs().max()) < 1e-6 for g in torch.autograd.grad(loss, [where.student.model.layer1.conv.weight]))


def test_where_a_channel_is_awake_does_not_matter():
    """A teacher that sees the image mirrored, with mirrored filters, has mirrored maps: the same correlations."""
    where = situation(Pyramid(2), Pyramid(2))
    where.student.model.load_state_dict(where.teacher.model.state_dict())
    method = ICKD(layers=["layer1"])
    batch = settled(method, where)
    convolution = where.teacher.model.layer1.conv
    convolution.weight.data = convolution.weight.data.flip(3)
    teacher = where.teacher(batch | {"x": batch["x"].flip(3)})
    student = where.student(batch)
    torch.testing.assert_close(teacher["layer1"], student["layer1"].flip(3))
    loss = method.transfer(student, teacher, batch).total()
    torch.testing.assert_close(loss, torch.zeros(()), atol=1e-10, rtol=0)


def test_options_and_a_mask_column_reach_the_loss():
    where = situation(Pyramid(2), Pyramid(2))
    method = ICKD(layers=["layer2"], mask="counts", normalise=False)
    batch = settled(method, where)
    signals = where.student(batch)["layer2"], where.teacher(batch)["layer2"]
    torch.testing.assert_close(correlated(method, batch), ickd(*signals, mask=batch["counts"], normalise=False).mean())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (Pyramid(2), Pyramid(3)),
        (Former(6), Former(8)),
        (Former(), Pyramid(4)),
        (Pyramid(2), Former()),
        (Vectors(5), Vectors(9)),
    ],
)
def test_it_runs_from_python_between_maps_tokens_and_vectors(student, teacher, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method="ickd", out=tmp_path / "run")
    assert '"correlation0"' in (run.folder / "log.jsonl").read_text()


def test_layers_and_options_are_checked():
    with pytest.raises(RecipeError, match="no such place"):
        settled(ICKD(layers=["layer9"]), situation())
    with pytest.raises(RecipeError, match="normalise"):
        ICKD(normalise="perhaps")
