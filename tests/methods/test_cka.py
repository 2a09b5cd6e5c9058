import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Former, Pyramid, Vectors, data, keys, settled, situation

import limbeck
from limbeck.engine.course import settle
from limbeck.engine.processes import World
from limbeck.engine.stepper import Stepper
from limbeck.errors import RecipeError
from limbeck.losses.alignment import cka
from limbeck.method import Progress, Update
from limbeck.methods.cka import CKA


def aligned(method, batch):
    return method.transfer(method.student(batch), method.teacher(batch), batch)


def test_the_loss_is_the_tasks_and_one_minus_the_alignment_of_the_embeddings():
    where = situation()
    method = CKA(weight=2.0)
    batch = settled(method, where)
    ours, theirs = where.student(batch), where.teacher(batch)["embedding"]
    a, b = ours["embedding"] - ours["embedding"].mean(0), theirs - theirs.mean(0)
    similarity = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    expected = F.cross_entropy(ours["logits"], batch["label"]) + 2 * (1 - similarity)
    torch.testing.assert_close(method.loss(batch).total(), expected)
    assert not list(method.parameters())


def test_a_rotated_and_scaled_teacher_teaches_nothing():
    where = situation(Vectors(5), Vectors(5), double=True)
    where.student.model.load_state_dict(where.teacher.model.state_dict())
    method = CKA(layers=[["fc2", "fc2"]], task_weight=0)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double()).Q
    last = where.teacher.model.fc2
    last.weight.data, last.bias.data = 9 * rotation @ last.weight.data, 9 * rotation @ last.bias.data + 3
    loss = method.loss(settled(method, where)).total()
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    for gradient in torch.autograd.grad(loss, list(where.student.model.parameters())[:4]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_the_whole_batch_is_compared_however_it_is_cut():
    found = []
    for pieces in (1, 3):
        where = situation(clip=None)
        method = CKA()
        settle(method, where)
        batch = where.data["train"].__getitems__(list(range(12)))
        with Stepper(method, where.settings, World(), pieces=pieces) as stepper:
            outcome, _, _ = stepper.perform(Update("student", method.loss, batch), Progress(steps=2))
        found.append((outcome.values["alignment0"], [p.detach().clone() for p in where.student.model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(one, other)


def test_the_options_reach_the_loss():
    where = situation()
    method = CKA(kernel="rbf", bandwidth=0.5, unbiased=True, layers=["layer1", ["layer3", "layer2"]])
    batch = settled(method, where)
    loss = aligned(method, batch)
    ours, theirs = where.student(batch), where.teacher(batch)
    for name, s, t in (("alignment0", "layer1", "layer1"), ("alignment1", "layer3", "layer2")):
        part = loss.parts[name]
        expected = cka(ours[s], theirs[t], kernel="rbf", bandwidth=0.5, unbiased=True)
        torch.testing.assert_close(part.value(part.tensors), expected)


def test_samples_that_do_not_count_are_not_compared():
    where = situation()
    for split in where.data.splits.values():
        split.tensors["known"] = torch.arange(12) % 4 != 0
    method = CKA(mask="known")
    batch = settled(method, where)
    part = aligned(method, batch).parts["alignment0"]
    ours, theirs = where.student(batch)["embedding"], where.teacher(batch)["embedding"]
    torch.testing.assert_close(part.value(part.tensors), cka(ours[batch["known"]], theirs[batch["known"]]))


@pytest.mark.parametrize(
    ("student", "teacher"), [(Pyramid(2), Pyramid(4)), (Former(), Pyramid(4)), (Vectors(5), Former())]
)
def test_it_runs_from_python_between_any_two_networks(student, teacher, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method={"use": "cka", "unbiased": True}, out=tmp_path / "run")
    assert '"alignment0"' in (run.folder / "log.jsonl").read_text()


def test_a_last_batch_of_one_teaches_the_task_only(tmp_path):
    run = limbeck.distill(**keys() | {"data": data(7)}, method="cka", out=tmp_path / "run")
    assert run.result["status"] == "finished"


def test_options_are_checked():
    with pytest.raises(RecipeError, match="kernel"):
        CKA(kernel="cubic")
    with pytest.raises(RecipeError, match="bandwidth"):
        CKA(bandwidth=0)
