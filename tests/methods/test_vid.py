import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Former, Pyramid, Vectors, keys, settled, situation

import limbeck
from limbeck.engine import checkpoint, weights
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.vid import VID


def information(method, batch):
    return method.transfer(method.student(batch), method.teacher(batch), batch)


def test_the_loss_is_the_tasks_and_the_gaussian_likelihood_of_every_stage():
    where = situation()
    method = VID(weight=0.7)
    batch = settled(method, where)
    ours, theirs = where.student(batch), where.teacher(batch)
    expected = F.cross_entropy(ours["logits"], batch["label"])
    for i in range(3):
        mean = method.terms.bridges[f"information{i}"](ours[f"layer{i + 1}"])
        variance = torch.full_like(mean, 5.0)
        expected = expected + 0.7 * F.gaussian_nll_loss(mean, theirs[f"layer{i + 1}"], variance)
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_variances_start_where_told_and_learn_with_the_student():
    where = situation(lr=0.05, steps=8, schedule="constant", warmup=0)
    method = VID(variance=2.5)
    settle(method, where)
    for i in range(3):
        torch.testing.assert_close(method.variances(i), torch.full((4 * (i + 1),), 2.5))
    learning = {id(p) for m in method.trainees()["student"] for p in m.parameters()}
    assert all(id(scale) in learning for scale in method.scales)
    Course(method, where).run()
    assert all((method.variances(i) < 2.4).all() for i in range(3))  # the features are closer than that


def test_the_variances_gradient_is_zero_where_they_are_the_mean_squared_error():
    where = situation(double=True)
    method = VID(layers=["layer2"]).double()
    batch = settled(method, where)
    method.double()
    gap = method.terms.bridges["information0"](where.student(batch)["layer2"]) - where.teacher(batch)["layer2"]
    best = gap.square().mean((0, 2, 3)).detach()
    method.scales[0].data = (best - 1e-5).expm1().log()
    torch.testing.assert_close(method.variances(0), best)
    (gradient,) = torch.autograd.grad(information(method, batch).total(), method.scales[0])
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_a_mask_column_counts_the_teachers_positions():
    where = situation()
    method = VID(layers=["layer2"], mask="counts")
    batch = settled(method, where)
    mean = method.terms.bridges["information0"](where.student(batch)["layer2"])
    single = F.gaussian_nll_loss(mean, where.teacher(batch)["layer2"], torch.full_like(mean, 5.0), reduction="none")
    expected = torch.stack([v[m].mean() for v, m in zip(single.mean(1), batch["counts"])]).mean()
    torch.testing.assert_close(information(method, batch).total(), expected)


def test_its_state_survives_a_checkpoint(tmp_path):
    where = situation()
    first, second = VID(), VID()
    batch = settled(first, where)
    settle(second, where)
    with torch.no_grad():
        first.scales[1].add_(1.0)
    assert second.loss(batch).total() != first.loss(batch).total()
    weights.give(second, checkpoint.load(checkpoint.save(tmp_path, 0, {"m": weights.take(first)}))["m"])
    assert torch.equal(second.loss(batch).total(), first.loss(batch).total())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(Pyramid(2), Pyramid(4)), (Former(), Pyramid(4)), (Pyramid(2), Former()), (Vectors(5), Vectors(9))],
)
def test_it_runs_from_python_between_maps_tokens_and_vectors(student, teacher, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method="vid", out=tmp_path / "run")
    assert '"information0"' in (run.folder / "log.jsonl").read_text()


def test_options_and_layers_are_checked():
    with pytest.raises(RecipeError, match="variance"):
        VID(variance=0)
    with pytest.raises(RecipeError, match="no such place"):
        settled(VID(layers=["layer9"]), situation())
