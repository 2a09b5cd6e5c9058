"""A further view for teacher and student alike."""

import pytest
import torch
from logit_cases import NAMES, Pointwise, settled, situation

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods import shown
from limbeck.methods.function_matching import FunctionMatching
from limbeck.methods.kd import KD
from limbeck.methods.mlkd import MLKD
from limbeck.transforms import Noise
from limbeck.views import View


def case():
    student = Student(Pointwise(), view="x", labels=NAMES)
    teacher = Teacher(Pointwise(), view=View("z", transforms=[Noise(std=0.0)]), labels=NAMES)
    where = situation(student=student, teacher=teacher)
    where.data["train"].tensors["z"] = where.data["train"].tensors["x"] + 1
    batch = settled(method := KD(), where)
    return method, batch


def test_all_that_anybody_is_shown_is_changed_and_nothing_else():
    method, batch = case()
    assert shown.columns(method) == ["x", "z"]
    before = {key: value.clone() for key, value in batch.items()}
    seeds = torch.arange(12)
    changed = shown.changed(batch, method, (Noise(std=1.0),), seeds)
    assert all(torch.equal(batch[key], before[key]) for key in batch)
    assert changed["label"] is batch["label"]
    for key in ("x", "z"):
        assert torch.equal(changed[key], Noise(std=1.0)({key: batch[key]}, seeds)[key])
    assert torch.equal(shown.changed(batch, method, (Noise(std=1.0),), None)["x"], batch["x"])  # as in evaluation


def test_an_unknown_column_is_refused_with_the_nearest():
    method, _ = case()
    shown.check((Noise(std=1.0), Noise(std=1.0, keys=("z",))), method, "strong")
    with pytest.raises(RecipeError, match="kd.strong names 'zz', which no view shows. Did you mean 'z'"):
        shown.check((Noise(std=1.0, keys=("zz",)),), method, "strong")


def test_a_store_of_answers_about_other_inputs_is_refused():
    for method, uses in (
        (FunctionMatching(), True),
        (FunctionMatching(mixup=0), False),
        (MLKD(), False),
        (MLKD(strong=[Noise(std=1.0)]), True),
    ):
        where = situation()
        settle(method, where)
        where.teacher.stored = True
        if uses:
            with pytest.raises(RecipeError, match="teacher is a store of answers about others. Use the teacher itself"):
                settle(method, where)
        else:
            settle(method, where)
