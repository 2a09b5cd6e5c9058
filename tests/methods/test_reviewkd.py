"""ReviewKD: its sum, its warm-up, what it proposes for unlike networks, and a run with a restart."""

import json

import pytest
import torch
from small_images import CNN, ViT, data, in_halves, settled, situation
from torch import nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.errors import RecipeError
from limbeck.losses.review import hcl
from limbeck.method import Progress
from limbeck.methods import find
from limbeck.methods.kd import KD
from limbeck.methods.reviewkd import ReviewKD


def test_the_loss_is_the_sum_of_hcl_over_the_levels():
    where, method = situation(), ReviewKD(weight=2.5, task_weight=0.0)
    batch = settled(method, where)
    assert method.pairs == [("first", "first"), ("second", "second"), ("third", "third"), ("embedding", "embedding")]
    method.eval()
    student, teacher = where.student(batch), where.teacher(batch)
    maps = [student["first"], student["second"], student["third"], student["embedding"][..., None, None]]
    reviewed = method.review(maps)
    targets = [teacher["first"], teacher["second"], teacher["third"], teacher["embedding"][..., None, None]]
    expected = sum(hcl(a, b).mean() for a, b in zip(reviewed, targets))
    torch.testing.assert_close(method.loss(batch).total(), 2.5 * expected)


def test_the_weight_rises_over_a_twelfth_of_the_stage():
    where, method = situation(), ReviewKD(task_weight=0.0)
    batch = settled(method, where)
    method.eval()

    def at(step):
        object.__setattr__(method, "progress", Progress(step, 240))
        return method.loss(batch).total().item()

    full = at(240)
    assert at(0) == 0
    assert at(5) == pytest.approx(full / 4)
    assert at(20) == at(100) == pytest.approx(full)


def test_levels_that_match_cost_nothing():
    """Every level's last normalisation gives its bias alone, and the teacher says that bias everywhere."""
    where, method = situation(), ReviewKD(weight=1.0, task_weight=0.0)
    batch = settled(method, where)
    where.student.model.eval()
    for level in method.review.levels:
        nn.init.zeros_(level.outer[1].weight)
        nn.init.constant_(level.outer[1].bias, 0.3)
    signals = where.student(batch)
    theirs = {name: torch.full((8, *where.teacher.shapes[name]), 0.3) for _, name in method.pairs}
    assert method.transfer(signals, theirs, batch).total().item() < 1e-12
    theirs["first"] += 0.5  # a constant difference d costs d^2 at every level, whatever its size
    assert method.transfer(signals, theirs, batch).total().item() == pytest.approx(0.25)


@pytest.mark.parametrize(("student", "teacher"), [(CNN, ViT), (ViT, CNN), (ViT, ViT)])
def test_it_joins_maps_and_tokens(student, teacher):
    where, method = situation(student(), teacher()), ReviewKD(weight=1.0)
    batch = settled(method, where)
    loss = method.loss(batch)
    assert set(loss.parts) == {"review", "task"}
    loss.total().backward()
    first = next(iter(where.student.model.parameters()))
    assert first.grad.abs().sum() > 0
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_networks_of_vectors_are_reviewed_without_a_second_embedding():
    class MLP(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x.flatten(1)).relu()).relu())

    where, method = situation(MLP(5), MLP(7)), ReviewKD(weight=1.0)
    settled(method, where)
    assert len(method.pairs) == 2
    assert len(method.review.levels) == 2


def test_named_layers_are_taken_as_they_are_and_the_fusion_learns():
    where, method = situation(), ReviewKD(layers=[["second", "third"]], weight=1.0)
    batch = settled(method, where)
    assert method.pairs == [("second", "third")]
    assert method.teacher_reads() == {"third"}
    method.loss(batch).total().backward()
    assert all(p.grad is not None for p in method.review.parameters())


def test_it_adds_to_kd():
    where, total = situation(), KD(temperature=2) + ReviewKD(weight=1.0)
    batch = settled(total, where)
    assert set(total.loss(batch).parts) == {"kl", "review", "task"}


def test_a_map_that_is_none_is_refused():
    where = situation(teacher=ViT())
    where.teacher.tap("odd", "embed")
    with pytest.raises(RecipeError, match="does not give|no such place"):
        settled(ReviewKD(layers=[["second", "nowhere"]]), where)


def test_a_run_in_two_halves_is_the_run(tmp_path):
    whole, halves = in_halves(lambda: (ReviewKD(weight=1.0), situation(epochs=2)), tmp_path)
    assert whole.keys() == halves.keys()
    assert any(name.startswith("method.review.") for name in whole)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_it_runs_from_a_recipe_and_leaves_the_fusion_behind(tmp_path):
    run = limbeck.distill(
        task="classification",
        data=data(),
        teacher=Teacher(CNN(6), view="x"),
        student=Student(CNN(4), view="x"),
        method={"use": "reviewkd", "weight": 2},
        train={"epochs": 1, "batch_size": 8},
        control="none",
        out=tmp_path / "run",
    )
    assert find("reviewkd") is ReviewKD
    assert run.result["status"] == "finished"
    from safetensors.torch import load_file

    assert load_file(tmp_path / "run/student/model.safetensors").keys() == CNN(4).state_dict().keys()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert any("review" in line.get("terms", {}) for line in lines)
