"""Limbeck's KD step beside torchdistill's, on the same models, batches, loss and optimiser, each in its own environment.

    PYTHONPATH=src python benchmarks/against_torchdistill.py --peer-python /path/to/python [--repetitions 5]

The peer's Python needs what benchmarks/peers/torchdistill_kd.py names. Processes alternate, one case and one side each,
one thread each; the figures are medians and quartiles over repetitions, the ratio is taken within a repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = {"cnn, batch 16": 100, "cnn, batch 128": 24, "cnn, batch 512": 8, "transformer, batch 32": 24}  # timed
FIGURES = ("ms", "cpu_ms", "peak_mb", "before_steps_mb")
MEANING = {
    "ms": "wall-clock time of one step (batch, teacher, student, loss, backward, clip, AdamW, the loss read)",
    "cpu_ms": "processor time of the same step: less moved by whoever else uses the machine",
    "peak_mb": "largest resident set of the process",
    "before_steps_mb": "resident set before the first step: the imports, the models and the data",
    "growth_mb": "peak_mb - before_steps_mb, of the same process",
    "ratio": "limbeck / torchdistill, within a repetition",
}


def limbeck(case: str, steps: int) -> dict[str, Any]:
    """Limbeck's side, measured in this process."""
    import torch
    from overhead import ByLimbeck, build, rows_of
    from peers.clock import FIRST, measure

    torch.set_num_threads(1)
    side = build(case, ByLimbeck, torch.device("cpu"))
    rows = [rows_of(case, step) for step in range(FIRST + steps)]

    def losses() -> Iterator[float]:
        return (side.step(r) for r in rows)

    return measure(losses(), steps) | {"versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}


def started(command: list[str], **environment: str) -> dict[str, Any]:
    """What a process prints as its last line."""
    ours = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=ours | threads | environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def compared(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one case.

    Raises:
        SystemExit: the losses of the first step differ by more than 1e-5 of their size: not the same task.
    """
    apart = [abs(a - b) / abs(b) for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True)]
    if not apart[0] <= 1e-5:
        raise SystemExit(f"the losses of the first step differ: {ours[0]['losses'][0]}, {theirs[0]['losses'][0]}")
    found: dict[str, Any] = {
        "relative_difference_of_first_loss": apart[0],
        "largest_relative_difference_of_losses_in_10_steps": max(apart),
    }
    for name, runs in {"limbeck": ours, "torchdistill": theirs}.items():
        found[name] = {figure: spread([run[figure] for run in runs]) for figure in FIGURES}
        found[name]["growth_mb"] = spread([run["peak_mb"] - run["before_steps_mb"] for run in runs])
        found[name]["losses"] = runs[0]["losses"]
    for figure in ("ms", "cpu_ms", "peak_mb"):
        found[f"ratio_{figure}"] = spread([a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True)])
    return found


def summary(runs: dict[str, dict[str, list[dict[str, Any]]]], load: list[float]) -> dict[str, Any]:
    one = {side: made[0] for side, made in runs[next(iter(runs))].items()}
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": spread(load) | {"largest": round(max(load), 2)},
        "threads": {side: run["threads"] for side, run in one.items()},
        "versions": {side: run["versions"] for side, run in one.items()},
        "repetitions": len(runs[next(iter(runs))]["limbeck"]),
        "steps_timed_per_process": {case: sides["limbeck"][0]["steps"] for case, sides in runs.items()},
        "notes": one["torchdistill"]["notes"],
        "meaning": MEANING,
        "cases": {case: compared(sides["limbeck"], sides["torchdistill"]) for case, sides in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the Python of torchdistill's environment")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "against-torchdistill.json")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--limbeck", nargs=2, metavar=("CASE", "STEPS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.limbeck:
        print(json.dumps(limbeck(given.limbeck[0], int(given.limbeck[1]))))
        return
    if not given.peer_python:
        parser.error("--peer-python is needed: the Python of an environment with torchdistill")
    peer = str(HERE / "peers" / "torchdistill_kd.py")
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {case: {"limbeck": [], "torchdistill": []} for case in STEPS}
    load: list[float] = []
    for repetition in range(given.repetitions):
        for case, sides in runs.items():
            steps = str(STEPS[case])
            for side in list(sides) if repetition % 2 == 0 else list(sides)[::-1]:
                load.append(os.getloadavg()[0])
                if side == "limbeck":
                    command = [sys.executable, __file__, "--limbeck", case, steps]
                    sides[side].append(started(command, PYTHONPATH=os.environ.get("PYTHONPATH", "")))
                else:
                    sides[side].append(started([given.peer_python, peer, "--case", case, "--steps", steps]))
                print(repetition, case, side, f"{sides[side][-1]['ms']:.2f} ms", flush=True)
        if repetition:  # quartiles need two; what is there is kept if somebody stops this
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(summary(runs, load), indent=1) + "\n")


if __name__ == "__main__":
    main()
