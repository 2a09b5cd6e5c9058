"""CRD: two steps written out slowly, candidates, memories over a restart and over pieces."""

import math

import pytest
import torch
import torch.nn.functional as F
from harness import fresh, steps, survives
from small_pictures import distilled, pictures, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.crd import CRD
from limbeck.tasks import Task

SMALL = {"width": 3, "negatives": 5, "temperature": 0.5}


def read(model, x):
    return model.high(model.middle(model.low(x))).mean((2, 3))


def slow_step(net, teacher, maps, banks, normalisers, batch, candidates, *, rows, temperature=0.5):
    """The paper's loss, candidate by candidate; changes banks and normalisers as published. Gives the loss."""
    g = [F.normalize(m(read(n, batch["x"])), dim=1) for m, n in zip(maps, (net, teacher))]
    total, k, old = 0.0, candidates.shape[1] - 1, [bank.clone() for bank in banks]
    for side, other in ((0, 1), (1, 0)):
        o = torch.stack(
            [
                torch.stack([torch.exp(old[other][e] @ g[side][b] / temperature) for e in candidates[b]])
                for b in range(len(g[side]))
            ]
        )
        if normalisers[side] is None:
            normalisers[side] = o.mean().item() * rows
        o = o / normalisers[side]
        noise = k / rows
        for b in range(len(o)):
            total = total - torch.log(o[b, 0] / (o[b, 0] + noise))
            for j in range(1, k + 1):
                total = total - torch.log(noise / (o[b, j] + noise))
    for bank, now in zip(banks, g):
        for b, row in enumerate(batch["row"].tolist()):
            mixed = 0.5 * bank[row] + 0.5 * now[b].detach()
            bank[row] = mixed / mixed.norm()
    task = F.cross_entropy(net(batch["x"]), batch["label"])
    return task + 0.8 * total / len(batch["x"])


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_a_whole_training_is_the_slow_one(micro_batch, tmp_path):
    drawn = []

    class Noted(CRD):
        card = CRD.card

        def candidates(self, entries):
            drawn.append(super().candidates(entries))
            return drawn[-1]

    def build():
        return Noted(**SMALL), situation(data=pictures(first=100), micro_batch=micro_batch)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    net, teacher = where.student.model, where.teacher.model
    maps, banks = list(method.maps.values()), [bank.clone() for bank in method.banks]
    parameters = [*net.parameters(), *(p for m in maps for p in m.parameters())]
    normalisers = [None, None]
    for batch, candidates in zip(steps(where), drawn, strict=True):
        batch["row"] = batch["id"] - 100
        loss = slow_step(net, teacher, maps, banks, normalisers, batch, candidates, rows=22)
        for p, grad in zip(parameters, torch.autograd.grad(loss, parameters)):
            p.data -= 0.1 * grad
    found = course.methods[0]
    torch.testing.assert_close(found.banks[0], banks[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.banks[1], banks[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.log_normalisers.exp(), torch.tensor(normalisers), rtol=1e-4, atol=0)
    torch.testing.assert_close(course.situation.student.model.head.weight, net.head.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.maps["teacher"].weight, maps[1].weight, rtol=1e-3, atol=1e-4)


def test_memories_normalisers_and_draws_survive_a_kill(tmp_path):
    course = survives(lambda: (CRD(**SMALL), situation(micro_batch=3)), tmp_path)
    state = course.methods[0].state_dict()
    assert {"banks", "log_normalisers"} <= state.keys()
    assert not any("class_" in name or "entries" in name for name in state)


def test_negatives_are_of_other_classes_and_all_of_them_come_up():
    method = CRD(**(SMALL | {"negatives": 300}))
    settled(method, situation(data=pictures(first=40)))
    classes = torch.arange(22) % 3
    entries = torch.tensor([0, 7, 21, 5])
    found = method.candidates(entries)
    assert found.shape == (4, 301)
    assert found[:, 0].tolist() == entries.tolist()
    for row, picks in zip(entries, found[:, 1:]):
        assert set(picks.tolist()) == {i for i in range(22) if classes[i] != classes[row]}


def test_negatives_are_drawn_evenly():
    torch.manual_seed(0)
    method = CRD(**(SMALL | {"negatives": 14000}))
    settled(method, situation())
    counts = method.candidates(torch.tensor([1]))[0, 1:].bincount(minlength=22)
    others = counts[torch.arange(22) % 3 != 1]
    assert counts.sum() == others.sum() == 14000
    expected = 14000 / len(others)
    assert float(((others - expected) ** 2 / expected).sum()) < 50  # chi-square of 14 degrees of freedom: p < 1e-5


def test_positives_of_the_same_class_where_asked_for():
    method = CRD(**SMALL, positive="class")
    settled(method, situation())
    torch.manual_seed(0)
    found = torch.cat([method.candidates(torch.tensor([4, 5])) for _ in range(60)])[:, 0].view(-1, 2)
    for column, row in enumerate((4, 5)):
        assert set(found[:, column].tolist()) == {i for i in range(22) if i % 3 == row % 3}


def test_without_classes_all_other_rows_are_negatives():
    where = situation()
    where.data.splits["train"].tensors["label"] = torch.randn(22, 3)
    where.task = Task("regression", target="label")
    method = CRD(**(SMALL | {"negatives": 400}))
    settle(method, where)
    found = method.candidates(torch.tensor([6]))
    assert found[0, 0] == 6
    assert set(found[0, 1:].tolist()) == set(range(22)) - {6}


def test_the_teachers_map_learns_and_the_teacher_does_not(tmp_path):
    where = situation(epochs=1)
    before = [p.clone() for p in where.teacher.model.parameters()]
    method = CRD(**SMALL)
    settled(method, where)
    start = {n: p.clone() for n, p in method.maps.named_parameters()}
    torch.manual_seed(0)
    course = Course(CRD(**SMALL), where)
    course.run()
    assert all(torch.equal(a, b) for a, b in zip(before, where.teacher.model.parameters()))
    for name, p in course.methods[0].maps.named_parameters():
        assert p.grad is not None, name
        assert not torch.equal(p, start[name])


def test_only_the_rows_of_the_batch_are_remembered_with_length_one():
    where = situation()
    where.settings = where.settings.model_copy(update={"epochs": None, "steps": 1})
    method = CRD(**SMALL)
    Course(method, where).run()
    seen = {int(i) for i in next(steps(where))["id"]}
    for bank in method.banks:
        assert {i for i, length in enumerate(bank.norm(dim=1)) if abs(length - 1) < 1e-5} == seen


def test_the_first_memories_have_the_published_spread():
    torch.manual_seed(1)
    method = CRD(width=128, negatives=4)
    settled(method, situation())
    bound = math.sqrt(3 / 128)  # 1 / sqrt(width / 3)
    assert float(method.banks[0].abs().max()) <= bound
    assert float(method.banks[0].abs().max()) > 0.98 * bound
    assert float(method.banks[0].std()) == pytest.approx(1 / math.sqrt(128), rel=0.05)


def test_it_runs_from_a_recipe(tmp_path):
    run = distilled({"use": "crd", "width": 4, "negatives": 8}, tmp_path)
    assert run.result["status"] == "finished"


def test_mistakes_are_sentences():
    with pytest.raises(RecipeError, match=r"crd contrasts one pair of layers.*names 2"):
        settled(CRD(layers=["low", "high"]), situation())
    where = situation()
    where.data.splits["train"].tensors["label"] = torch.zeros(22, dtype=torch.int64)
    with pytest.raises(RecipeError, match="all training rows are of one class"):
        settled(CRD(), where)
    with pytest.raises(RecipeError, match="crd.momentum"):
        CRD(momentum=1.0)
