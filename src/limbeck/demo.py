"""`limbeck demo`: what distillation across modalities does, on data that come with the package."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from limbeck.evaluation import intervals
from limbeck.recipe import Recipe
from limbeck.report import terminal as tables
from limbeck.report import write
from limbeck.run import Run, distill
from limbeck.terminal import Terminal

DIGITS = "limbeck.models.digits"
TEACHER = {"train": {"batch_size": 64, "lr": 4e-3, "epochs": 12}, "control": "none", "method": "supervised"}
STUDENT = {
    "train": {"batch_size": 64, "lr": 4e-3, "epochs": 20},
    "student": {"model": f"{DIGITS}:ImageCNN", "args": {"width": 24}, "view": "image"},
}
MST = {"use": "mst-distill", "mask_width": 6}  # narrow masks: the published width is made for layers ten times as wide


def run_demo(out: Path, *, seeds: int = 3, as_json: bool = False, quiet: bool = False) -> int:
    """Train teachers, the student alone, plain KD and MST-Distill for each seed; print one table; leave reports."""
    started = time.monotonic()
    torch.set_num_threads(1)  # networks so small that handing work to a second thread costs more than it saves
    console = Console(stderr=True)
    runs: list[dict[str, Run]] = []
    with Terminal(console, quiet=quiet or as_json) as shown:
        shown.say(
            "Handwritten and spoken digits. Two teachers: one sees and hears, one only hears. The student only sees.\n"
            f"Everything is written to {out}; the same command continues where it was stopped."
        )
        for seed in range(seeds):
            runs.append(_one_seed(out, seed, seeds, shown))
            rows = _rows(runs)
            title = f"av-digits, test accuracy, {len(runs)} of {seeds} seeds, {time.monotonic() - started:.0f} s"
            shown.table(tables.table(rows, title=title), last=seed + 1 == seeds)
    summary = _summary(runs)
    (out / "demo.json").write_text(json.dumps(summary, indent=1) + "\n")
    report = write(
        [run.folder for seed in runs for name, run in seed.items() if name in ("kd", "mst-distill")],
        out / "report.html",
    )
    if as_json:
        print(json.dumps(summary, indent=1))
        return 0
    if not quiet:
        _last_lines(out, report, runs, summary)
    return 0


def _one_seed(out: Path, seed: int, seeds: int, shown: Terminal) -> dict[str, Run]:
    found: dict[str, Run] = {}

    def run(name: str, **keys: Any) -> Run:
        shown.prefix = f"seed {seed + 1}/{seeds} · {name} · "
        recipe = Recipe.of(
            {"task": "classification", "data": {"path": "av-digits", "args": {"seed": seed}}, "seed": seed} | keys
        )
        command = f"limbeck demo ({name}, seed {seed})"
        return distill(recipe, out=out / f"{name}-{seed}", observer=shown.muted(), command=command)

    def network(name: str, view: list[str]) -> dict[str, Any]:
        return {"model": f"{DIGITS}:{name}", "args": {"width": 12}, "view": view}

    found["both"] = run("both", student=network("Fusion", ["image", "audio"]), **TEACHER)
    found["audio"] = run("audio", student=network("AudioCNN", ["audio"]), **TEACHER)
    both, audio = (str(found[name].folder) for name in ("both", "audio"))
    found["kd"] = run("kd", teacher=both, method="kd", **STUDENT)
    members = {"both": {"model": both}, "audio": {"model": audio}}
    found["mst-distill"] = run("mst-distill", teacher={"members": members}, method=MST, **STUDENT)
    return found


NAMES = {
    "both": "teacher, image + audio",
    "audio": "teacher, audio only",
    "control": "student alone",
    "kd": "student, KD",
    "mst-distill": "student, MST-Distill",
}


def _entries(seed: dict[str, Run]) -> dict[str, dict[str, Any]]:
    return {
        "both": seed["both"].result["student"],
        "audio": seed["audio"].result["student"],
        "control": seed["kd"].result["control"],
        "kd": seed["kd"].result["student"],
        "mst-distill": seed["mst-distill"].result["student"],
    }


def _summary(runs: list[dict[str, Run]]) -> dict[str, Any]:
    """Per row its accuracies by seed, with mean and standard deviation; per method its paired difference to the control."""
    entries = [_entries(seed) for seed in runs]
    summary: dict[str, Any] = {"metric": "accuracy", "split": "test", "seeds": len(runs), "rows": {}}
    for name, told in NAMES.items():
        values = [e[name]["metric"] for e in entries]
        row = {
            "name": told,
            "values": values,
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
        }
        row |= {key: entries[0][name][key] for key in ("parameters", "bytes")}
        row["latency_ms"] = statistics.median(e[name]["latency_ms"] for e in entries)
        if name in ("kd", "mst-distill"):
            found = intervals.paired_t([e[name]["metric"] - e["control"]["metric"] for e in entries])
            row["difference_to_control"] = {key: getattr(found, key) for key in ("mean", "low", "high", "level")}
        summary["rows"][name] = row
    return summary


def _rows(runs: list[dict[str, Run]]) -> list[tables.Row]:
    rows = _summary(runs)["rows"]
    return [
        tables.Row(
            row["name"],
            row["mean"],
            row["sd"],
            row["parameters"],
            row["latency_ms"],
            row["bytes"],
            reference=name in ("both", "audio"),
        )
        for name, row in rows.items()
    ]


def _last_lines(out: Path, report: Path, runs: list[dict[str, Run]], summary: dict[str, Any]) -> None:
    console = Console()
    for name in ("kd", "mst-distill"):
        row = summary["rows"][name]
        difference = row["difference_to_control"]
        span = (
            f" (95 % interval {difference['low']:+.3f} to {difference['high']:+.3f})"
            if len(runs) > 1
            else " (one seed: no interval)"
        )
        console.print(f"{row['name']} - student alone: {difference['mean']:+.3f}{span}", highlight=False)
    folder = runs[0]["mst-distill"].folder
    console.print(
        f"\nLook at   {report} (all runs) or {folder}/report.html (one run, with what the router chose)\n"
        f"Ship      {folder}/student/model.safetensors\n"
        f"Repeat    limbeck distill {folder} --out {out}/again\n"
        f"Try next  limbeck distill {runs[0]['kd'].folder} method.temperature=2\n"
        "          limbeck methods                       what there is, and what it needs\n"
        "          limbeck inspect limbeck.models.digits:Fusion --data av-digits\n"
        "          your own data and models: README.md, section 'Your own models'",
        highlight=False,
        soft_wrap=True,
    )
