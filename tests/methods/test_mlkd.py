"""MLKD: its loss written out on two views, which view teaches what, the released code's slips by name, whole runs."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from logit_cases import NAMES, Pointwise, distilled, logits, settled, situation

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.engine.divide import Divider
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.methods.mlkd import MLKD
from limbeck.transforms import Noise
from limbeck.views import View

AT = (4.0, 3.0, 5.0, 2.0, 6.0)
NOISE = {"use": "noise", "std": 0.5}


def with_seeds(batch):
    return batch | {"view_seed": torch.arange(100, 100 + len(batch["id"]))}


def kd(s, t, temperature):
    p = (t / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - (s / temperature).log_softmax(1))).sum(1)


def gram(s, t, temperature, transpose):
    a, b = ((x / temperature).softmax(1) for x in (s, t))
    a, b = (a.mT, b.mT) if transpose else (a, b)
    return (b @ b.mT - a @ a.mT).square()


def written_out(weak, strong, y, released):
    """0.1 CE of each view + 0.9 (KD of both views + CC + BC), as in `train` of the released code, or as it was meant."""
    (s, t), (s2, t2) = weak, strong
    sure, given = t.softmax(1).amax(1), t.softmax(1).sum(0)
    samples, classes = (x <= x.quantile(0.5) for x in (sure, given))
    total = 0.1 * (F.cross_entropy(s, y) + F.cross_entropy(s2, y))
    for i, T in enumerate(AT):
        instance, cc, bc = kd(s, t, T), gram(s, t, T, True), gram(s, t, T, False)
        if released:
            total += 0.9 * instance.mean() * samples.double().mean()
            total += 0.9 * cc.sum() / len(given) * classes.double().mean()
            total += 0.9 * bc.sum() / len(sure) * samples.double().mean()
            total += 0.9 * (kd(s2, t2, T) if i < 3 else kd(s, t, T)).mean()
        else:
            total += 0.9 * instance[samples].sum() / len(sure)
            total += 0.9 * cc[:, classes].sum() / len(given)
            total += 0.9 * bc[:, samples].sum() / len(sure)
            total += 0.9 * kd(s2, t2, T).mean()
    return total


@pytest.mark.parametrize("parity", ["intended", "released"])
def test_the_loss_on_two_views(parity):
    where = situation()
    method = MLKD(strong=[NOISE], parity=parity)
    batch = with_seeds(settled(method, where))
    second = method.second_view(batch)
    assert (second["x"] - batch["x"]).abs().min() > 0
    assert second["label"] is batch["label"]
    expected = written_out(logits(where, batch), logits(where, second), batch["label"], parity == "released")
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_without_a_second_view_nothing_is_computed_twice():
    where = situation()
    calls = []
    batch = with_seeds(settled(method := MLKD(), where))
    for actor in (where.student, where.teacher):
        actor.model.register_forward_hook(lambda *_: calls.append(1))
    both = logits(where, batch)
    calls.clear()
    torch.testing.assert_close(method.loss(batch).total(), written_out(both, both, batch["label"], False))
    assert len(calls) == 2


def test_teacher_and_student_see_the_same_second_view_and_it_repeats():
    where = situation()
    method = MLKD(strong=NOISE)
    batch = with_seeds(settled(method, where))
    seen = []
    for actor in (where.student, where.teacher):
        actor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    first, again = method.loss(batch), method.loss(batch)
    assert torch.equal(first.total(), again.total())
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])
    half = {key: value[:5] for key, value in batch.items()}
    assert torch.equal(method.second_view(half)["x"], method.second_view(batch)["x"][:5])


def test_the_views_own_random_transforms_are_drawn_again():
    view = View("x", transforms=[Noise(std=0.3)])
    where = situation(
        student=Student(Pointwise(), view=view, labels=NAMES), teacher=Teacher(Pointwise(), view=view, labels=NAMES)
    )
    method = MLKD()
    batch = with_seeds(settled(method, where))
    second = method.second_view(batch)
    assert torch.equal(second["x"], batch["x"])  # the view itself draws, from other seeds
    expected = written_out(logits(where, batch), logits(where, second), batch["label"], False)
    torch.testing.assert_close(method.loss(batch).total(), expected)
    assert (where.student(second)["logits"] - where.student(batch)["logits"]).abs().min() > 0
    del batch["view_seed"]
    assert method.second_view(batch) is None  # evaluation sees the data as they are


def test_z_scores_touch_the_divergences_alone():
    where = situation()
    batch = settled(plain := MLKD(), where)
    settled(standard := MLKD(standardise=True), where)
    one, other = plain.loss(batch).parts, standard.loss(batch).parts
    for name in ("classes", "samples", "instance"):
        same = torch.equal(one[name].value(one[name].tensors), other[name].value(other[name].tensors))
        assert same == (name != "instance")
    assert torch.equal(one["task"].sum, other["task"].sum)
    assert not torch.equal(one["strong"].sum, other["strong"].sum)


def test_only_shared_classes_are_compared():
    teacher = Teacher(Pointwise(), view="x", labels=NAMES[::-1])
    where = situation(teacher=teacher)
    batch = settled(method := MLKD(), where)
    s, t = logits(where, batch)
    expected = written_out((s, t.flip(1)), (s, t.flip(1)), batch["label"], False)
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_masked_samples_take_no_part():
    where = situation()
    batch = settled(method := MLKD(mask="kept", task_weight=0, strong_task_weight=0), where)
    kept = batch["kept"]
    assert 0 < kept.sum() < len(kept)
    both = tuple(x[kept] for x in logits(where, batch))
    task = 0.2 * F.cross_entropy(both[0], batch["label"][kept])
    expected = written_out(both, both, batch["label"][kept], False) - task
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_the_gradient_does_not_depend_on_how_the_batch_was_cut():
    where = situation()
    batch = with_seeds(settled(method := MLKD(strong=[NOISE]), where))
    found = []
    for pieces in (1, 5):
        where.student.model.zero_grad()
        parameters = list(where.student.model.parameters())
        Divider(World.here(), nullcontext)(method.loss, batch, parameters, pieces=pieces)
        found.append([p.grad.clone() for p in parameters])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_said_before_training():
    with pytest.raises(RecipeError, match=r"mlkd relates samples.*gives \[4, 3, 2\] per sample"):
        settle(MLKD(), situation("maps"))
    with pytest.raises(RecipeError, match=r"mlkd.strong names 'y', which no view shows"):
        settle(MLKD(strong=[{"use": "noise", "std": 1, "keys": "y"}]), situation())
    with pytest.raises(RecipeError, match="unknown transform 'nois'. Did you mean 'noise'"):
        MLKD(strong=["nois"])
    with pytest.raises(RecipeError, match="temperatures"):
        MLKD(temperatures=[])
    with pytest.raises(RecipeError, match="temperatures"):
        MLKD(temperatures=[2, 0])


def test_a_recipe_spells_its_second_view():
    options = MLKD(strong=Noise(std=0.5)).options()
    assert options["strong"][0]["use"] == "noise"
    assert MLKD(**options).strong == (Noise(std=0.5),)
    assert (options["temperatures"], options["kd_weight"], options["task_weight"]) == (list(AT), 0.9, 0.1)


def test_it_runs_from_python(tmp_path):
    run = distilled({"use": "mlkd", "strong": [NOISE]}, tmp_path / "run")
    assert run.result["status"] == "finished"
    log = (run.folder / "log.jsonl").read_text()
    assert all(f'"{name}"' in log for name in ("instance", "strong", "classes", "samples", "task", "task.strong"))
