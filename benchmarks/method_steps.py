"""What the loss of a method costs beside a plain loop written from its paper: forward and backward, given the features.

    python benchmarks/method_steps.py [--out benchmarks/results/method-steps.json] [--only NAME ...]

Both sides get the same features of student and teacher, which require gradients on the student's side, and have the same
weights; networks and engine are left out. Steps alternate in one process, the order turning each time; the figures are
medians and quartiles of the seconds and of the ratio of each pair of steps, on the wall and of the processor's time,
which whoever else uses the machine moves less. Before the clock starts both sides'
values and gradients are compared. The loops follow the way such code is usually written: a list of features in,
attention over maps side by side, both maps pooled for each grid, one loss call for each exit.

A further method joins by a function in `CASES`: it gives the two sides as functions without arguments that return a
scalar loss, and the tensors whose gradients both fill.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.losses.ofa import ofa
from limbeck.losses.review import hcl
from limbeck.method import Method, Progress
from limbeck.methods.ofa import OFA
from limbeck.methods.reviewkd import ReviewKD
from limbeck.signals import Signals
from limbeck.tasks import Task

Shapes = Sequence[tuple[int, ...]]
Side = Callable[[], Tensor]
Case = tuple[Side, Side, list[Tensor]]


class Given(nn.Module):
    """A network that says what it is shown: columns in, features by name out."""

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = list(names)
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, *columns: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, columns))


def prepared(
    method: Method, student: Shapes, teacher: Shapes, classes: int, batch: int, device: torch.device
) -> tuple[Signals, Signals, dict[str, Tensor]]:
    """The method bound to actors with such features, and one batch of them."""
    torch.manual_seed(0)
    split = TensorSplit({"label": torch.randint(0, classes, (batch,))})
    actors: list[Any] = []
    for kind, who, shapes in ((Student, "s", student), (Teacher, "t", teacher)):
        columns = {f"{who}{i}": torch.randn(batch, *shape) for i, shape in enumerate(shapes)}
        columns[f"{who}_logits"] = torch.randn(batch, classes)
        split.tensors |= columns
        names = [*(f"f{i}" for i in range(len(shapes))), "logits"]
        taps = {name: f"output.{name}" for name in names}
        actors.append(kind(Given(names).to(device), view=list(columns), taps=taps))
    data = Data({"train": split}, dict.fromkeys(split.tensors, ""), {}, fingerprint="-", source="random")
    settings = TrainSettings(steps=1, epochs=None, batch_size=batch)
    settle(method, Situation(*actors, Task("classification"), data, settings))
    method.to(device).train()
    object.__setattr__(method, "progress", Progress(1, 1))
    rows = {name: column.to(device) for name, column in split.__getitems__(list(range(batch))).items()}
    ours, theirs = actors[0](rows), actors[1](rows)
    return Signals({n: v.requires_grad_() for n, v in ours.items()}), Signals(dict(theirs)), rows


class Fusion(nn.Module):
    """One level of a review, its gates computed from both maps side by side."""

    def __init__(self, channels: int, width: int, out: int, fuse: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.conv2 = nn.Sequential(nn.Conv2d(width, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, y: Tensor | None, size: int, out_size: int) -> tuple[Tensor, Tensor]:
        x = self.conv1(x)
        if self.attention is not None and y is not None:
            y = F.interpolate(y, (size, size), mode="nearest")
            z = self.attention(torch.cat([x, y], dim=1))
            x = x * z[:, 0].unsqueeze(1) + y * z[:, 1].unsqueeze(1)
        if x.shape[-1] != out_size:
            x = F.interpolate(x, (out_size, out_size), mode="nearest")
        return self.conv2(x), x


def plain_hcl(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    total: Any = 0.0
    for s, t in zip(students, teachers):
        loss, share, weights = F.mse_loss(s, t), 1.0, 1.0
        for side in (4, 2, 1):
            if side >= s.shape[2]:
                continue
            share /= 2
            loss = loss + share * F.mse_loss(F.adaptive_avg_pool2d(s, side), F.adaptive_avg_pool2d(t, side))
            weights += share
        total = total + loss / weights
    return total


def reviewkd(batch: int, device: torch.device) -> Case:
    """The shapes of resnet32x4 -> resnet8x4 on CIFAR: three maps and the pooled feature."""
    shapes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)]
    method = ReviewKD(layers=[f"f{i}" for i in range(4)], weight=1.0)
    student, teacher, rows = prepared(method, shapes, shapes, 100, batch, device)
    levels = nn.ModuleList(Fusion(s[0], 256, s[0], fuse=i < 3) for i, s in enumerate(shapes)).to(device)
    for level, own in zip(levels, method.review.levels):
        level.conv1.load_state_dict(own.inner.state_dict())
        state = own.outer.state_dict()
        state["0.weight"] = F.pad(state["0.weight"], [1] * 4) if state["0.weight"].shape[-1] == 1 else state["0.weight"]
        level.conv2.load_state_dict(state)
        if own.gate_of_own is not None:
            joined = torch.cat([own.gate_of_own.weight, own.gate_of_deeper.weight], 1)
            level.attention[0].load_state_dict({"weight": joined, "bias": own.gate_of_own.bias})
    names = [f"f{i}" for i in range(4)]

    def maps(signals: Signals) -> list[Tensor]:
        return [s if s.dim() == 4 else s[..., None, None] for s in (signals[n] for n in names)]

    def by_hand() -> Tensor:
        found: list[Tensor] = []
        residual = None
        features = maps(student)
        for level, x in zip(reversed(levels), reversed(features)):
            out, residual = level(x, residual, x.shape[-1], x.shape[-1])
            found.insert(0, out)
        return plain_hcl(found, maps(teacher))

    return by_hand, lambda: method.transfer(student, teacher, rows).total(), [student[n] for n in names]


def review_loss(batch: int, device: torch.device) -> Case:
    """HCL alone on the same maps."""
    torch.manual_seed(0)
    shapes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256, 1, 1)]
    ours = [torch.randn(batch, *s, device=device, requires_grad=True) for s in shapes]
    theirs = [torch.randn(batch, *s, device=device) for s in shapes]
    return (
        lambda: plain_hcl(ours, theirs),
        lambda: torch.stack([hcl(s, t) for s, t in zip(ours, theirs)]).sum(0).mean(),
        ours,
    )


def plain_ofa(said: Tensor, theirs: Tensor, mask: Tensor, exponent: float) -> Tensor:
    q, p = F.softmax(said, dim=1), F.softmax(theirs, dim=1)
    return torch.sum(-((p + mask) ** exponent - mask) * torch.log(q), dim=-1).mean()


def ofa_step(batch: int, device: torch.device) -> Case:
    """A ResNet-18 of CIFAR maps (64 to 512 channels) with four exits of the same modules on both sides, 100 classes."""
    shapes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    method = OFA(exits=[f"f{i}" for i in range(4)], exponent=1.5, width=512)
    student, teacher, rows = prepared(method, shapes, [], 100, batch, device)
    heads = copy.deepcopy(method.heads)
    names = [f"f{i}" for i in range(4)]

    def by_hand() -> Tensor:
        mask = F.one_hot(rows["label"], 100)
        loss = plain_ofa(student["logits"], teacher["logits"], mask, 1.5)
        for head, name in zip(heads, names):
            loss = loss + plain_ofa(head(student[name]), teacher["logits"], mask, 1.5)
        return loss

    return by_hand, lambda: method.transfer(student, teacher, rows).total(), [student[n] for n in (*names, "logits")]


def ofa_loss(batch: int, device: torch.device) -> Case:
    """The loss alone, of one set of logits with 1000 classes."""
    torch.manual_seed(0)
    ours, theirs = torch.randn(batch, 1000, device=device, requires_grad=True), torch.randn(batch, 1000, device=device)
    target = torch.randint(0, 1000, (batch,), device=device)
    return (
        lambda: plain_ofa(ours, theirs, F.one_hot(target, 1000), 1.5),
        lambda: ofa(ours, theirs, target=target, exponent=1.5).mean(),
        [ours],
    )


# By name: the function, the batch, and how many times --pairs are timed (a short step needs more for a steady median).
CASES: dict[str, tuple[Callable[[int, torch.device], Case], int, int]] = {
    "reviewkd, resnet8x4 on CIFAR, batch 32": (reviewkd, 32, 1),
    "hcl alone, batch 64": (review_loss, 64, 3),
    "ofa, four exits, batch 32": (ofa_step, 32, 3),
    "ofa's loss alone, 1000 classes, batch 256": (ofa_loss, 256, 30),
}


def timed(make: Callable[[int, torch.device], Case], batch: int, pairs: int, device: torch.device) -> dict[str, Any]:
    """Alternating steps of both sides."""
    by_hand, ours, tensors = make(batch, device)

    def step(side: Side) -> tuple[Tensor, list[Tensor]]:
        loss = side()
        for tensor in tensors:
            tensor.grad = None
        loss.backward()
        return loss.detach(), [t.grad for t in tensors if t.grad is not None]

    (loss, gradients), (our_loss, our_gradients) = step(by_hand), step(ours)
    apart = max(float((a - b).norm() / a.norm()) for a, b in zip(gradients, our_gradients, strict=True))
    seconds: dict[str, list[float]] = {"by hand": [], "limbeck": []}
    used: dict[str, list[float]] = {"by hand": [], "limbeck": []}
    sides = {"by hand": by_hand, "limbeck": ours}
    for turn in range(pairs + 2):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            if device.type == "cuda":
                torch.cuda.synchronize()
            clock, processor = time.perf_counter(), time.process_time()
            step(sides[name])
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn > 1:  # the first two warm up
                seconds[name].append(time.perf_counter() - clock)
                used[name].append(time.process_time() - processor)
    ratios, of_processor = ([b / a for a, b in zip(t["by hand"], t["limbeck"])] for t in (seconds, used))

    def told(values: Sequence[float], scale: float = 1.0) -> list[float]:
        return [round(q * scale, 4) for q in statistics.quantiles(values, n=4)]

    return {
        "ms_by_hand_quartiles": told(seconds["by hand"], 1e3),
        "ms_limbeck_quartiles": told(seconds["limbeck"], 1e3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": told(ratios),
        "ratio_of_processor_time": round(statistics.median(of_processor), 4),
        "ratio_of_processor_time_quartiles": told(of_processor),
        "pairs": pairs,
        "relative_difference_of_losses": float(abs(loss - our_loss) / abs(loss)),
        "relative_difference_of_gradients": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/method-steps.json"))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    about = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__, "precision": "fp32"}
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    found.setdefault(given.device, {})["about"] = about
    for name in given.only:
        make, batch, times = CASES[name]
        found[given.device][name] = timed(make, batch, times * given.pairs, device)
        print(name, json.dumps(found[given.device][name], indent=1), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
