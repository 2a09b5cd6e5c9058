"""A compiled student learns the same; figures also go to Accelerate's trackers."""

import pytest
import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import tracking
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.methods.kd import KD
from limbeck.tasks import Task

NAMES = ["a", "b", "c"]


def trained(log: Log | None = None, **train) -> nn.Module:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    split = TensorSplit({"x": torch.randn(32, 4), "label": torch.randint(0, 3, (32,))})
    data = Data({"train": split, "validation": split}, {"x": "", "label": ""}, {"label": NAMES}, source="toy")
    settings = TrainSettings(epochs=2, batch_size=8, lr=1e-2, **train)
    situation = Situation(
        Student(student, view="x", taps={"hint": "0"}),
        Teacher(teacher, view="x"),
        Task("classification", labels=NAMES),
        data,
        settings,
    )
    if log is not None:
        situation.log = log
    Course(KD(), situation).run()
    return student


def test_a_compiled_student_learns_the_same():
    for plain, compiled in zip(trained().parameters(), trained(compile="eager").parameters(), strict=True):
        torch.testing.assert_close(compiled, plain)


def test_trackers_are_told_every_figure_by_dotted_names(tmp_path):
    pytest.importorskip("tensorboard")
    trackers = tracking.build(["tensorboard"], tmp_path, {"train": {"lr": 1e-2}, "method": {"use": "kd"}})
    log = Log(tmp_path / "log.jsonl", trackers)
    trained(log)
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = min((file.parent for file in tmp_path.rglob("events.out.tfevents.*")), key=lambda found: len(found.parts))
    seen = EventAccumulator(str(folder)).Reload()
    assert {"loss", "terms.kl.value", "terms.task.share", "lr"} <= set(seen.Tags()["scalars"])


def test_an_unknown_tracker_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        tracking.build(["tensorbord"], tmp_path, {})
