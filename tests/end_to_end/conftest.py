"""A tiny project of a user's own: networks in a module, data in a CSV beside it, recipes in YAML."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

MODELS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Joins whatever it is given and classifies it."""

    def __init__(self, inputs: int, classes: int = 3, width: int = 8):
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.drop = nn.Dropout(0.1)
        self.fc2 = nn.Linear(width, width)
        self.out = nn.Linear(width, classes)

    def forward(self, *signals):
        return self.out(self.fc2(self.drop(self.fc1(torch.cat(signals, 1)).relu())).relu())


class Normed(Net):
    def __init__(self, inputs: int, classes: int = 3):
        super().__init__(inputs, classes)
        self.fc2 = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))


def gap(student, teacher):
    return (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1)


def one_number(student, teacher):
    return (student - teacher).square().mean()
'''

DATA = """
import torch
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit


def paired(rows: int = 96, seed: int = 0, classes: int = 3):
    g = torch.Generator().manual_seed(seed)

    def part(n, first):
        y = torch.randint(0, classes, (n,), generator=g)
        x = torch.randn(n, 4, generator=g) + torch.eye(4)[y]
        a = torch.randn(n, 3, generator=g) + 2 * torch.eye(3)[y % 3]
        return TensorSplit({"x": x, "a": a, "label": y}, first)

    splits = {"train": part(rows, 0), "validation": part(30, rows), "test": part(40, rows + 30)}
    return Data(splits, {"x": "weak", "a": "strong", "label": "class"}, {"label": ["red", "green", "blue"]}, source="paired")
"""

KD = """
task: classification
data: tiny_data:paired
teacher: {model: "tiny_models:Net", args: {inputs: 7}, view: [x, a]}
student: {model: "tiny_models:Net", args: {inputs: 4}, view: x}
method: {use: kd, temperature: 2}
train: {epochs: 3, batch_size: 16, lr: 1e-2}
control: none
seed: 3
"""

MST = """
task: classification
data: tiny_data:paired
teacher:
  members:
    both: {model: "tiny_models:Net", args: {inputs: 7}, view: [x, a]}
    other: {model: "tiny_models:Net", args: {inputs: 3}, view: a}
student: {model: "tiny_models:Net", args: {inputs: 4}, view: x}
method: mst-distill
train: {epochs: 3, batch_size: 16, lr: 1e-2}
control: train
seed: 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder of the project, which is also the current folder."""
    (tmp_path / "tiny_models.py").write_text(MODELS)
    (tmp_path / "tiny_data.py").write_text(DATA)
    (tmp_path / "kd.yaml").write_text(KD)
    (tmp_path / "mst.yaml").write_text(MST)
    monkeypatch.chdir(tmp_path)
    for name in ("tiny_models", "tiny_data"):
        sys.modules.pop(name, None)
    path = list(sys.path)
    sys.path.insert(0, str(tmp_path))
    torch.set_num_threads(1)
    yield tmp_path
    sys.path[:] = path
    for name in ("tiny_models", "tiny_data"):
        sys.modules.pop(name, None)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: gives exit code, standard output and standard error."""
    from limbeck.cli import main

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(words))
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return call
