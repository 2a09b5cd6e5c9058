"""Divergences of two language models from hidden states and heads: time and memory of a loss with all its gradients.

    python benchmarks/linear_divergence.py [--out benchmarks/results/linear-divergence.json]

Every side gets the same hidden states and heads and gives the mean loss over tokens and the gradients in the student's
hidden states and head. Sides take turns within one process; figures are the median, the smallest and the largest over
rounds of the ratio to the plain KL of that round, by elapsed time and by the time of all threads (which other programs
disturb less, with OMP_WAIT_POLICY=passive), and the ratio of the smallest times. Memory is the peak above the inputs in a
fresh process per side (CPU: resident set; GPU: allocated), the gradients included.

`plain kl` frees what it can; `held kl` is the same with the logits of both models held by a name, as in a training loop that
calls two models. Formulas of other tools are written here from their descriptions, in plain torch: `chunked autograd` asks
autograd for every chunk of 1024 tokens, `trl jsd` is TRL's generalised JSD. Where `liger_kernel` can be imported, its own
chunked loss takes part (not compiled): `liger kl` with beta = 0 and `liger jsd` with 0.5.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import losses
from limbeck.losses import linear
from limbeck.signals import Projection

try:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
except ImportError:
    LigerFusedLinearJSDLoss = None

Pair = tuple[Projection, Projection]


def log_probabilities(student: Projection, teacher: Projection) -> tuple[Tensor, Tensor]:
    """Of all tokens and classes, as they are usually made."""
    with torch.no_grad():
        log_p = teacher.materialise().float().log_softmax(-1)
    return student.materialise().float().log_softmax(-1), log_p


def relative_entropy(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) as torch has it, summed over everything."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum")


def plain(student: Projection, teacher: Projection, reverse: bool = False) -> None:
    """The whole matrix of both, and autograd."""
    log_q, log_p = log_probabilities(student, teacher)
    loss = relative_entropy(log_p, log_q) if reverse else relative_entropy(log_q, log_p)
    (loss / len(log_q)).backward()


def by_limbeck(student: Projection, teacher: Projection) -> None:
    """The whole matrix with the plain function of this library."""
    losses.kl(student.materialise(), teacher.materialise()).mean().backward()


def held(student: Projection, teacher: Projection) -> None:
    """The whole matrix and autograd, with logits that somebody else holds."""
    logits = student.materialise()
    with torch.no_grad():
        others = teacher.materialise()
    loss = relative_entropy(logits.log_softmax(-1), others.log_softmax(-1))
    (loss / len(logits)).backward()


def trl(student: Projection, teacher: Projection, beta: float = 0.5, temperature: float = 1.0) -> None:
    """TRL's generalised JSD over held logits; the mixture is a logsumexp of both, stacked."""
    logits = student.materialise()
    with torch.no_grad():
        others = teacher.materialise()
    log_q, log_p = (x.div(temperature).log_softmax(-1) for x in (logits, others))
    log_m = torch.logsumexp(torch.stack([log_q + math.log1p(-beta), log_p + math.log(beta)]), dim=0)
    to_p, to_q = (F.kl_div(log_m, side, log_target=True, reduction="none") for side in (log_p, log_q))
    ((beta * to_p + (1 - beta) * to_q).sum() / len(logits)).backward()


def liger(student: Projection, teacher: Projection, beta: float) -> None:
    """Liger's own, without labels."""
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    every = torch.zeros(len(student.hidden), dtype=torch.int64, device=student.hidden.device)
    loss(student.hidden, student.weight, teacher.hidden, teacher.weight, every).backward()


def chunked_autograd(student: Projection, teacher: Projection, chunk: int = 1024) -> None:
    """Every chunk of tokens through `grad_and_value`; gradients of the head are added up."""

    def loss(hidden: Tensor, weight: Tensor, other: Tensor) -> Tensor:
        log_q, log_p = log_probabilities(Projection(hidden, weight), Projection(other, teacher.weight))
        return relative_entropy(log_q, log_p) / len(student.hidden)

    total = torch.zeros_like(student.weight)
    into = []
    for hidden, other in zip(student.hidden.detach().split(chunk), teacher.hidden.split(chunk)):
        (of_hidden, of_weight), _ = torch.func.grad_and_value(loss, argnums=(0, 1))(hidden, student.weight, other)
        total += of_weight
        into.append(of_hidden)
    student.weight.grad, student.hidden.grad = total, torch.cat(into)


def ours(student: Projection, teacher: Projection, form: Callable[..., Tensor], budget: int | None = None) -> None:
    """One of `limbeck.losses.linear`."""
    form(student, teacher, budget=budget).mean().backward()


SIDES: dict[str, Callable[..., None]] = {
    "plain kl": plain,
    "plain reverse kl": partial(plain, reverse=True),
    "losses.kl": by_limbeck,
    "held kl": held,
    "trl jsd": trl,
    "chunked autograd": chunked_autograd,
    **{
        f"ours {name.replace('_', ' ')}": partial(ours, form=getattr(linear, name))
        for name in ("kl", "reverse_kl", "js")
    },
    **{f"ours kl, budget {m} MB": partial(ours, form=linear.kl, budget=m * 2**20) for m in (32, 64, 256)},
}
if LigerFusedLinearJSDLoss is not None:
    SIDES |= {"liger kl": partial(liger, beta=0.0), "liger jsd": partial(liger, beta=0.5)}


def inputs(size: argparse.Namespace, tokens: int) -> Pair:
    """Hidden states and heads whose logits have a spread of about 3, as those of language models have."""
    draw = torch.Generator(size.device).manual_seed(0)

    def side(width: int, learns: bool) -> Projection:
        of = {"device": size.device, "generator": draw, "dtype": getattr(torch, size.dtype)}
        hidden, weight = torch.randn(tokens, width, **of), torch.randn(size.classes, width, **of).mul_(3 / width**0.5)
        return Projection(hidden.requires_grad_(learns), weight.requires_grad_(learns))

    return side(size.student, True), side(size.teacher, False)


def step(name: str, pair: Pair) -> tuple[float, float]:
    """Seconds of one pass: elapsed, and of all threads of this process."""
    pair[0].hidden.grad = pair[0].weight.grad = None
    gpu = pair[0].hidden.is_cuda
    if gpu:
        torch.cuda.synchronize()
    elapsed, own = time.perf_counter(), time.process_time()
    SIDES[name](*pair)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - elapsed, time.process_time() - own


def peak(name: str, size: argparse.Namespace) -> float:
    """MB above the inputs, after a pass over a few tokens has loaded what torch loads once."""
    step(name, inputs(size, 8))
    pair = inputs(size, size.tokens)
    if size.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step(name, pair)
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the mark of the largest resident set starts anew
    before = _resident("VmRSS")
    step(name, pair)
    return (_resident("VmHWM") - before) / 1e6


def _resident(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return float(found[1]) * 1024


def times(names: list[str], size: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Over rounds, the sides in turn and every other round backwards."""
    pair = inputs(size, size.tokens)
    rounds = [
        {name: step(name, pair) for name in (names if turn % 2 else names[::-1])} for turn in range(size.rounds + 1)
    ][1:]
    return {name: figures(rounds, name, names[0]) for name in names}


def figures(rounds: list[dict[str, tuple[float, float]]], name: str, base: str) -> dict[str, Any]:
    """Of one side: seconds, and its ratio to another round by round, by elapsed time and by that of all threads."""
    found: dict[str, Any] = {}
    for i, what in enumerate(("elapsed", "threads")):
        own, other = ([r[side][i] for r in rounds] for side in (name, base))
        ratios = sorted(a / b for a, b in zip(own, other))
        found[what] = {
            "seconds": statistics.median(own),
            "of_plain_kl": statistics.median(ratios),
            "least": ratios[0],
            "most": ratios[-1],
            "of_smallest": min(own) / min(other),
        }
    return found


def main() -> None:
    """All sides, printed and (with --out) written."""
    take = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers: dict[str, int] = {
        "tokens": 1024,
        "classes": 32000,
        "student": 256,
        "teacher": 512,
        "rounds": 7,
        "threads": 2,
    }
    for name, value in numbers.items():
        take.add_argument(f"--{name}", type=int, default=value)
    take.add_argument("--dtype", default="float32")
    take.add_argument("--device", default="cpu")
    take.add_argument("--out", type=Path)
    take.add_argument("--sides", nargs="*", default=list(SIDES))
    take.add_argument("--only-memory-of", help=argparse.SUPPRESS)
    size = take.parse_args()
    torch.set_num_threads(size.threads)
    if size.only_memory_of:
        print(peak(size.only_memory_of, size))
        return
    own = [sys.executable, __file__, *sys.argv[1:]]
    memory = {
        name: float(subprocess.run([*own, "--only-memory-of", name], check=True, capture_output=True, text=True).stdout)
        for name in size.sides
    }
    found: dict[str, Any] = {name: {**row, "peak_mb": memory[name]} for name, row in times(size.sides, size).items()}
    for name, row in found.items():
        spans = "  ".join(
            f"{r['of_plain_kl']:.2f} ({r['least']:.2f}-{r['most']:.2f}; {r['of_smallest']:.2f})"
            for r in (row["elapsed"], row["threads"])
        )
        print(f"{name:22}{spans}  {row['elapsed']['seconds']:6.2f} s {row['peak_mb']:6.0f} MB", flush=True)
    if size.out:
        machine = {
            "torch": torch.__version__,
            "load": os.getloadavg()[0],
            "processor": platform.processor() or platform.machine(),
        }
        setting = {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(size).items()
            if k not in ("out", "only_memory_of", "sides")
        }
        size.out.write_text(json.dumps({"setting": setting, "machine": machine, "sides": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
