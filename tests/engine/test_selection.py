import json

import pytest
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Trainer
from limbeck.methods.supervised import Supervised
from limbeck.tasks import Task


@pytest.mark.parametrize("select", ["best", "last"])
def test_a_stage_reports_the_validation_of_the_weights_it_hands_over(select, tmp_path):
    def rows(count, seed):
        x = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
        return TensorSplit({"x": x, "label": x[:, :3].argmax(1)}, first_id=100 * seed)

    data = Data({"train": rows(30, 1), "validation": rows(20, 2)}, {"x": "", "label": ""}, {"label": ["a", "b", "c"]})
    torch.manual_seed(0)
    student = Student(nn.Linear(5, 3), view="x")
    task = Task("classification", labels=["a", "b", "c"])
    settings = TrainSettings(
        epochs=8, batch_size=10, lr=30.0, schedule="constant", select=select
    )  # so large that it strays
    log = Log(tmp_path / "log.jsonl")
    (result,) = Course(Supervised(), Situation(student, None, task, data, settings, log=log)).run()
    log.close()
    seen = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    seen = [line for line in seen if line.get("event") == "validation"]
    best = min(seen, key=lambda line: (-line["metric"], line["loss"]))
    assert best["epoch"] != 7, "the test needs a best epoch that is not the last"
    told = best if select == "best" else seen[-1]
    assert (result.loss, result.metric, result.selected_epoch) == (told["loss"], told["metric"], told["epoch"])
    rows_of = data["validation"].tensors
    with torch.no_grad():
        logits = student.model(rows_of["x"])
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, rows_of["label"]).item(), rel=1e-5)


class ByLoss(Supervised):
    def selects_by(self):
        return "loss"


@pytest.mark.parametrize(("method", "epoch"), [(Supervised(), 2), (ByLoss(), 3)], ids=["metric", "loss"])
def test_best_is_best_in_the_metric_unless_the_method_goes_by_its_loss(method, epoch, monkeypatch):
    script = iter(
        [(0.5, 0.6), (0.9, 0.8), (0.7, 0.8), (0.4, 0.7), (0.8, 0.8)]
    )  # epoch 2 ties with 1 and 4: its loss is less
    monkeypatch.setattr(Trainer, "_measure", lambda self: next(script))
    split = TensorSplit({"x": torch.randn(12, 5), "label": torch.randint(0, 3, (12,))})
    data = Data({"train": split, "validation": split}, {"x": "", "label": ""}, {"label": ["a", "b", "c"]})
    task = Task("classification", labels=["a", "b", "c"])
    settings = TrainSettings(epochs=5, batch_size=6)
    (result,) = Course(method, Situation(Student(nn.Linear(5, 3), view="x"), None, task, data, settings)).run()
    assert result.selected_epoch == epoch
