"""Function matching: that both see the same mixture, its loss written out, how it is drawn, what is refused, runs."""

import pytest
import torch
from harness import survives
from logit_cases import NAMES, Pointwise, distilled, settled, situation

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.method import Progress
from limbeck.methods.function_matching import FunctionMatching, mixed
from limbeck.methods.kd import KD
from limbeck.transforms import Noise
from limbeck.views import View

NOISE = {"use": "noise", "std": 0.5}


def learned(method, batch):
    """What one step is given to learn from."""
    (update,) = method.learn(batch, Progress())
    return update


def with_seeds(batch):
    return batch | {"view_seed": torch.arange(100, 100 + len(batch["id"]))}


def test_mixing_goes_around_the_batch():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    assert mixed(x, 0.75).tolist() == [[0.75, 0.25], [1.0, 1.75], [3.25, 3.0]]
    assert torch.equal(mixed(x, 1.0), x)
    torch.testing.assert_close(mixed(x, 0.6).sum(0), x.sum(0))  # nothing is lost
    assert torch.equal(mixed(x[:1], 0.6), x[:1])  # alone, with itself
    assert mixed(x.half(), 0.6).dtype == torch.float16


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_the_loss_is_kl_at_the_mixture_for_both(kind):
    where = situation(kind)
    batch = with_seeds(settled(method := FunctionMatching(), where))
    torch.manual_seed(3)
    b = float(torch.distributions.Beta(1.0, 1.0).sample())
    x = mixed(batch["x"], max(b, 1 - b))
    torch.manual_seed(3)
    update = learned(method, batch)
    assert torch.equal(update.batch["x"], x)
    assert torch.equal(update.batch["id"], batch["id"])
    p, q = (actor.model(x).softmax(1) for actor in (where.teacher, where.student))
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(update.loss(update.batch).total(), expected)
    assert set(update.loss(update.batch).parts) == {"kl"}


def test_without_mixture_and_augmentation_it_is_kd_without_labels():
    where = situation()
    batch = with_seeds(settled(method := FunctionMatching(mixup=0), where))
    update = learned(method, batch)
    settled(plain := KD(temperature=1.0, task_weight=0), where)
    assert torch.equal(update.loss(update.batch).total(), plain.loss(batch).total())


def test_it_needs_no_labels():
    where = situation()
    for split in where.data.splits.values():
        del split.tensors["label"]
    batch = with_seeds(settled(method := FunctionMatching(), where))
    update = learned(method, batch)
    assert update.loss(update.batch).total() > 0


def test_augmentation_comes_first_and_is_the_same_for_both():
    where = situation()
    batch = with_seeds(settled(method := FunctionMatching(augment=NOISE), where))
    seen = []
    for actor in (where.student, where.teacher):
        actor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    torch.manual_seed(3)
    update = learned(method, batch)
    update.loss(update.batch)
    b = float(torch.manual_seed(3) and torch.distributions.Beta(1.0, 1.0).sample())
    noisy = Noise(std=0.5)({"x": batch["x"]}, batch["view_seed"])["x"]
    assert torch.equal(seen[0], mixed(noisy, max(b, 1 - b)))
    assert torch.equal(seen[0], seen[1])


def test_different_columns_get_the_same_share():
    student = Student(Pointwise(), view="x", labels=NAMES)
    where = situation(student=student, teacher=Teacher(Pointwise(), view="z", labels=NAMES))
    where.data["train"].tensors["z"] = 10 * where.data["train"].tensors["x"]
    batch = with_seeds(settled(method := FunctionMatching(), where))
    update = learned(method, batch)
    torch.testing.assert_close(update.batch["z"], 10 * update.batch["x"])
    assert not torch.equal(update.batch["x"], batch["x"])


def test_every_step_draws_anew_and_the_own_part_is_the_larger():
    where = situation()
    where.data["train"].tensors["x"] = torch.eye(20, 5).double()
    batch = with_seeds(settled(method := FunctionMatching(mixup=0.3), where))
    shares = [float(learned(method, batch).batch["x"][0, 0]) for _ in range(40)]
    assert len(set(shares)) == 40
    assert all(0.5 <= share <= 1 for share in shares)


def test_what_does_not_fit_is_said_before_training():
    noisy = View("x", transforms=[Noise(std=0.3)])
    student = Student(Pointwise(), view=noisy, labels=NAMES)
    with pytest.raises(RecipeError, match="the random transforms of their views differ"):
        settle(FunctionMatching(), situation(student=student))
    settle(FunctionMatching(), situation(student=student, teacher=Teacher(Pointwise(), view=noisy, labels=NAMES)))
    with pytest.raises(RecipeError, match=r"a mixture has no label. Set method.mixup=0"):
        settle(FunctionMatching(task_weight=0.5), situation())
    settle(FunctionMatching(task_weight=0.5, mixup=0), situation())
    with pytest.raises(RecipeError, match="augment names 'y', which no view shows"):
        settle(FunctionMatching(augment={"use": "noise", "std": 1, "keys": "y"}), situation())
    where = situation()
    where.data["train"].tensors["x"] = torch.randint(0, 3, (20, 5))
    for actor in (where.student, where.teacher):
        actor.model.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    with pytest.raises(RecipeError, match="column 'x' does not hold floating-point numbers"):
        settle(FunctionMatching(), where)
    with pytest.raises(RecipeError, match="mixup"):
        FunctionMatching(mixup=-1)
    with pytest.raises(RecipeError, match="'function-matching' is a procedure of its own|cannot be added"):
        FunctionMatching() + KD()


def test_a_run_that_was_cut_off_draws_the_same_mixtures(tmp_path):
    survives(lambda: (FunctionMatching(), situation(dtype=torch.float32, epochs=1)), tmp_path)


def test_it_runs_from_python(tmp_path):
    run = distilled({"use": "function-matching", "augment": [NOISE]}, tmp_path / "run")
    assert run.result["status"] == "finished"
    log = (run.folder / "log.jsonl").read_text()
    assert '"kl"' in log
    assert '"task"' not in log
