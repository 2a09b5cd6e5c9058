"""torchdistill's KD step on the models and batches of benchmarks/overhead.py; run by benchmarks/against_torchdistill.py.

    python benchmarks/peers/torchdistill_kd.py --case "cnn, batch 128" --steps 60

Runs in an environment of its own, without Limbeck: torch 2.13.0, numpy, pyyaml, pillow, `pip install --no-deps torchdistill==1.1.5`.
The step is that of torchdistill's example script for image classification: batches through MetricLogger.log_every,
DistillationBox.forward_process, post_forward_process, then the meters and the check for nan. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from clock import FIRST, measure
from torch import Tensor, nn

OVERHEAD = Path(__file__).resolve().parent.parent / "overhead.py"
SHARED = {"TEMPERATURE", "CNN", "Transformer", "images", "tokens", "CASES", "rows_of"}
TOUCHED = {  # what torchdistill looks up in torchvision when it is imported
    "torchvision": [],
    "torchvision.datasets": [],
    "torchvision.models": [],
    "torchvision.models.densenet": ["_DenseBlock", "_Transition"],
    "torchvision.models.resnet": ["BasicBlock", "conv1x1"],
}
NOTES = [
    "Criterion: KDLoss with alpha=1, beta=1, reduction=batchmean: cross-entropy + T^2 KL, the function the other side minimises.",
    "Optimiser: AdamW, lr 1e-3, weight decay 0.01, max_grad_norm 1.0, on both sides.",
    "Batches are index_select from tensors in memory, as on the other side: torchdistill's DataLoader is not timed.",
    "The teacher is put into eval mode by this script, as on the other side; torchdistill leaves its mode to the caller.",
]


class Rows:
    """Batches in the form torchdistill's data loaders give: inputs, targets, an empty dict of supplements."""

    def __init__(self, x: Tensor, label: Tensor, rows: list[Tensor]):
        self.x, self.label, self.rows = x, label, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        return ((self.x.index_select(0, r), self.label.index_select(0, r), {}) for r in self.rows)


def shared() -> dict[str, Any]:
    """The models, data and cases as overhead.py writes them: taken from its text, for it imports Limbeck."""
    tree = ast.parse(OVERHEAD.read_text())

    def names(node: ast.stmt) -> set[str]:
        if isinstance(node, ast.AnnAssign):
            return {ast.unparse(node.target)}
        if isinstance(node, ast.Assign):
            return {ast.unparse(target) for target in node.targets}
        return {getattr(node, "name", "")}

    tree.body = [node for node in tree.body if names(node) & SHARED]
    made: dict[str, Any] = {"torch": torch, "nn": nn, "Tensor": Tensor, "__name__": "overhead"}
    exec(compile(tree, str(OVERHEAD), "exec"), made)
    return made


def stand_in() -> bool:
    """If there is no torchvision, put empty modules and classes under the names torchdistill imports from it."""
    if importlib.util.find_spec("torchvision") is not None:
        return False
    for name, members in TOUCHED.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (nn.Module,), {}))
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return True


def train_config(temperature: float) -> dict[str, Any]:
    """The `train` section of a torchdistill recipe."""
    kd = {"temperature": temperature, "alpha": 1.0, "beta": 1.0, "reduction": "batchmean"}
    for side in ("student", "teacher"):
        kd |= {f"{side}_module_path": ".", f"{side}_module_io": "output"}
    term = {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}
    return {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-3, "weight_decay": 0.01}, "max_grad_norm": 1.0},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }


def losses(box: Any, batches: Rows, device: torch.device) -> Iterator[float]:
    """An epoch as torchdistill's examples run it, one loss per step."""
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    box.pre_epoch_process(epoch=0)
    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for x, label, extra in meters.log_every(batches, 100, "Epoch: [0]"):
        started = time.time()
        x, label = x.to(device), label.to(device)
        loss = box.forward_process(x, label, extra)
        box.post_forward_process(loss=loss)
        meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        meters.meters["img/s"].update(len(x) / (time.time() - started))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"the loss is {loss}")
        yield meters.meters["loss"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = shared()
    case = made["CASES"][given.case]
    notes = list(NOTES)
    if stand_in():
        notes.append(f"No torchvision here: empty stand-ins for {', '.join(TOUCHED)}; no step runs any of them.")
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.losses import mid_level  # noqa: F401 - registers KDLoss
    from torchdistill.misc.log import set_basic_log_config

    set_basic_log_config()
    device = torch.device("cpu")
    torch.manual_seed(0)  # the order of overhead.build: student, teacher, inputs, labels
    student, teacher = case["model"](case["student"]), case["model"](case["teacher"])
    x, label = case["data"](2048), torch.randint(0, 10, (2048,))
    box = get_distillation_box(teacher.eval(), student, {}, train_config(made["TEMPERATURE"]), device, None, False, 1)
    rows = [made["rows_of"](given.case, step) for step in range(FIRST + given.steps)]
    found = measure(losses(box, Rows(x, label, rows), device), given.steps)
    versions = {"torchdistill": importlib.metadata.version("torchdistill"), "torch": torch.__version__}
    print(json.dumps(found | {"versions": versions, "threads": torch.get_num_threads(), "notes": notes}))


if __name__ == "__main__":
    main()
