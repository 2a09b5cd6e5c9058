import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Dense, Former, Pyramid, keys, settled, situation

import limbeck
from limbeck.errors import RecipeError
from limbeck.losses.channelwise import cwd
from limbeck.methods.cwd import CWD


def test_in_segmentation_it_reads_the_logits():
    where = situation(Dense(2), Dense(4), dense=True)
    method = CWD(weight=3.0)
    batch = settled(method, where)
    ours, theirs = where.student(batch)["logits"], where.teacher(batch)["logits"]
    p, log_q = (theirs.flatten(2) / 4).softmax(2), (ours.flatten(2) / 4).log_softmax(2)
    published = F.kl_div(log_q, p, reduction="sum") * 16 / (len(ours) * 3)
    torch.testing.assert_close(method.loss(batch).total(), F.cross_entropy(ours, batch["label"]) + 3 * published)
    assert not list(method.parameters())


def test_elsewhere_it_reads_the_last_map_through_a_convolution():
    where = situation()
    method = CWD(temperature=2.0)
    batch = settled(method, where)
    assert method.pairs == [("layer3", "layer3")]
    ours = method.terms.bridges["channels0"](where.student(batch)["layer3"])
    value = method.transfer(where.student(batch), where.teacher(batch), batch).total()
    torch.testing.assert_close(value, cwd(ours, where.teacher(batch)["layer3"], temperature=2.0).mean())


def test_a_constant_per_channel_of_the_student_changes_nothing():
    where = situation(Dense(2), Dense(4), dense=True, double=True)
    method = CWD()
    batch = settled(method, where)
    value = method.transfer(where.student(batch), where.teacher(batch), batch).total()
    where.student.model.head.bias.data += torch.tensor([5.0, -3.0, 100.0])
    after = method.transfer(where.student(batch), where.teacher(batch), batch).total()
    torch.testing.assert_close(after, value)
    (gradient,) = torch.autograd.grad(after, where.student.model.head.bias)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_the_same_network_teaches_nothing():
    where = situation(Dense(3), Dense(3), dense=True)
    where.student.model.load_state_dict(where.teacher.model.state_dict())
    method = CWD(task_weight=0)
    batch = settled(method, where)
    loss = method.loss(batch).total()
    assert loss.item() == 0
    assert all(float(g.abs().max()) < 1e-6 for g in torch.autograd.grad(loss, list(where.student.model.parameters())))


def test_ignored_pixels_of_the_labels_take_no_part():
    where = situation(Dense(2), Dense(4), dense=True)
    for split in where.data.splits.values():
        split.tensors["label"][:, :3] = -100
    method = CWD(mask="label")
    batch = settled(method, where)
    signals = where.student(batch), where.teacher(batch)
    expected = cwd(signals[0]["logits"][:, :, 3:], signals[1]["logits"][:, :, 3:]).mean()
    torch.testing.assert_close(method.transfer(*signals, batch).total(), expected)


def test_a_mask_column_counts_positions():
    where = situation(Pyramid(2), Pyramid(2))
    method = CWD(layers=["layer2"], mask="counts")
    batch = settled(method, where)
    signals = where.student(batch), where.teacher(batch)
    expected = cwd(signals[0]["layer2"], signals[1]["layer2"], mask=batch["counts"]).mean()
    torch.testing.assert_close(method.transfer(*signals, batch).total(), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "dense"),
    [(Dense(2), Dense(4), True), (Former(), Pyramid(4), False), (Pyramid(2), Former(), False)],
)
def test_it_runs_from_python(student, teacher, dense, tmp_path):
    run = limbeck.distill(**keys(student, teacher, dense=dense), method="cwd", out=tmp_path / "run")
    assert '"channels0"' in (run.folder / "log.jsonl").read_text()


def test_what_has_no_positions_is_refused_and_options_are_checked():
    with pytest.raises(RecipeError, match="temperature"):
        CWD(temperature=0)
    with pytest.raises(RecipeError, match=r"teacher's \[9\].*channel-wise distillation compares positions"):
        settled(CWD(layers=[["layer3", "fc:input"]]), situation(Pyramid(2), Pyramid(3)))
