"""What a stage refuses before its first step."""

import pytest
import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import Course
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.losses import mse
from limbeck.method import Transfer
from limbeck.objectives import Objective, Term


class Normed(Transfer):
    """A bridge of the method's own with a BatchNorm in it; the student has none."""

    def objective(self):
        bridge = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
        return Objective(Term(mse, ("logits", "out"), bridge=bridge))

    def prepare(self):
        self.teacher.tap("out", "output")


def situation(rows, **train):
    split = TensorSplit({"x": torch.randn(rows, 4), "label": torch.zeros(rows, dtype=torch.int64)})
    data = Data({"train": split}, {"x": "", "label": ""}, {"label": ["a", "b", "c"]}, source="toy")
    actors = Student(nn.Linear(4, 3), view="x"), Teacher(nn.Linear(4, 5), view="x")
    return Situation(*actors, None, data, TrainSettings(epochs=1, batch_size=4, **train))


def test_a_single_sample_must_not_reach_a_batch_norm_of_the_method_either():
    method = Normed()
    with pytest.raises(RecipeError, match=r"batch_size=4 leaves 1 of 9 samples for the last step"):
        Course(method, situation(9)).run()
    with pytest.raises(RecipeError, match=r"train.batch_size=4, 4 pieces"):
        Course(Normed(), situation(8, micro_batch=1)).run()
    Course(method := Normed(), situation(8)).run()
    (norm,) = (m for m in method.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.num_batches_tracked == 2  # the two steps, and no trial before them
