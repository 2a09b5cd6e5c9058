"""A plan in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.planning import Plan
from limbeck.planning.advice import duration, gigabytes
from limbeck.planning.prediction import SECTIONS

KINDS = {
    "student": "student",
    "teacher": "teacher",
    "method": "method's own modules",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "ema": "moving average",
    "batch": "batch",
    "activations": "kept for the backward pass",
    "temporary": "passing tensors",
    "data": "data",
    "base": "process and libraries",
    "other": "the rest",
}


def show(plan: Plan, console: Console) -> None:
    """The answer first, then of what it is made, then what to change and what is only estimated."""
    details = plan.details
    console.print(_answer(plan), highlight=False, soft_wrap=True, markup=False)
    console.print(_memory(details))
    console.print(_time(details))
    console.print(_inference(details))
    for sentence in plan.advice:
        console.print(f"change: {sentence}", highlight=False, soft_wrap=True, markup=False)
    for sentence in plan.notes:
        console.print(f"note: {sentence}", highlight=False, soft_wrap=True, markup=False)


def _answer(plan: Plan) -> str:
    device = plan.details["on"]
    parts = [f"memory {gigabytes(plan.memory_gb * 1e9)}" + (" on each device" if device["count"] > 1 else "")]
    here = plan.details["time"]["seconds_here"]["total"]
    parts.append(f"time {duration(plan.hours * 3600)}" if plan.hours is not None else f"time here {duration(here)}")
    parts.append(f"disk {gigabytes(plan.disk_gb * 1e9)}")
    parts += [f"{plan.usd:.2f} USD"] if plan.usd is not None else []
    broken = [
        f"{limit['what']} {limit['predicted']:.3g} of {limit['limit']:.3g} ({limit['from']})"
        for limit in plan.details["limits"]
        if not limit["held"]
    ]
    verdict = "fits" if plan.fits else f"DOES NOT FIT: {', '.join(broken)}"
    return f"{plan.details['method']} on {device['device']}: {verdict}\n" + ", ".join(parts)


def _memory(details: dict[str, Any]) -> Table:
    table = Table(box=None, title="memory", title_justify="left")
    table.add_column("")
    table.add_column("parameters", justify="right")
    table.add_column("bytes", justify="right")
    memory, parameters = details["memory"], details["parameters"]
    for kind, called in KINDS.items():
        if memory.get(kind):
            count = f"{parameters[kind]:,}" if kind in parameters else ""
            table.add_row(called, count, gigabytes(memory[kind]))
    table.add_row("at the peak", "", gigabytes(memory["total"]))
    return table


def _time(details: dict[str, Any]) -> Table:
    table = Table(box=None, title="time on this machine", title_justify="left")
    for name in ("", "steps", "each", "together"):
        table.add_column(name, justify="left" if not name else "right")
    for stage in details["stages"]:
        called = f"{'control, ' if stage['control'] else ''}{stage['name']} ({stage['method']})"
        table.add_row(called, f"{stage['steps']:,}", duration(stage["step_s"]), duration(stage["seconds"]))
    table.add_row("start, measuring, report", "", "", duration(max(details["time"]["seconds_here"]["around"], 0.0)))
    for name, share in details["time"]["shares"].items():
        if share >= 0.005:
            table.add_row(f"  of a step: {SECTIONS[name]}", "", "", f"{share:.0%}")
    for name, share in list(details["time"]["terms"].items())[:4]:
        table.add_row(f"    the term {name}", "", "", f"{share:.1%}")
    return table


def _inference(details: dict[str, Any]) -> Table:
    table = Table(box=None, title="at inference, on this machine", title_justify="left")
    for name in ("", "parameters", "bytes", "ms for one sample"):
        table.add_column(name, justify="left" if not name else "right")
    inference = details["inference"]
    for who in ("teacher", "student"):
        entry = inference[who]
        if entry:
            latency = "" if entry["latency_ms"] is None else f"{entry['latency_ms']:.3g}"
            table.add_row(who, f"{entry['parameters']:,}", gigabytes(entry["bytes"]), latency)
    if inference["times_less"]:
        table.add_row("times less", *("" if v is None else f"{v:.3g}" for v in inference["times_less"].values()))
    return table
