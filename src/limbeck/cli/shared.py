"""What the verbs share: the application, flags, exit codes, and how a result is shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from limbeck.errors import RecipeError

CODE = "LIMBECK_EXIT_CODE"  # the file for the exit code of several processes
DONE, FAULT, CANNOT_RUN, ANSWER_IS_NO, LIMIT, INTERRUPTED = 0, 1, 2, 3, 4, 130

app = typer.Typer(
    name="limbeck",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Knowledge distillation: bring any teacher, any student and your data.\n\n"
    "First time here: `limbeck demo`. With your own files: `limbeck inspect DATA`, then `limbeck distill recipe.yaml`. "
    "Any key of the recipe can be changed on the command line: `limbeck distill recipe.yaml train.lr=1e-4 'teacher.view=[image, audio]'`.\n\n"
    "Exit codes: 0 done · 1 a fault of ours or the machine's · 2 this input cannot be run, nothing was started · 3 done, and the answer is no "
    "(a requirement missed, a plan that does not fit) · 4 stopped at a limit, resume goes on · 130 Ctrl-C, resume goes on.",
)

OutFlag = Annotated[
    Path | None,
    typer.Option("--out", help="The run folder; the same recipe into the same folder continues what is there."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON to standard output.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but the result and errors.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.", show_default=False)
]


def fail(sentence: str, code: int) -> int:
    if not_main():
        sentence = f"process {os.environ['RANK']}: {sentence}"
    Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
    return code


def show_or_json(value: Any, as_json: bool, otherwise: Callable[[], None]) -> None:
    if as_json:
        from limbeck.writing import without_nan

        print(json.dumps(without_nan(value), indent=1, default=str))
    else:
        otherwise()


def finished(run: Any, as_json: bool) -> int:
    """Print a finished run's table; whether its requirements hold decides the exit code."""
    from limbeck.report.terminal import result_rows, table

    result = run.result

    def show() -> None:
        console = Console()
        console.print(table(result_rows([result])))
        difference = result.get("difference")
        if difference:
            console.print(
                f"student - control: {difference['mean']:+.4f} (95 % interval {difference['low']:+.4f} to {difference['high']:+.4f}, {difference['how']})",
                highlight=False,
                soft_wrap=True,
            )
        for line in result["require"]:
            console.print(
                f"{'held' if line['held'] else 'MISSED'}: {line['text']} (it is {number(line['value'])})",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        console.print(
            f"student: {run.folder}/student   report: {run.folder}/report.html", highlight=False, soft_wrap=True
        )

    show_or_json(result, as_json, show)
    return DONE if all(line["held"] for line in result["require"]) else ANSWER_IS_NO


def processes(gpus: str | None) -> int | None:
    """How many processes `--gpus` asks for; None when this process is one of them, or alone."""
    if gpus is None or "RANK" in os.environ:
        return None
    import torch

    if gpus == "all":
        count = torch.cuda.device_count() or 1
    elif gpus.isdigit() and int(gpus) >= 1:
        count = int(gpus)
    else:
        raise RecipeError(f"--gpus '{gpus}': give a number, or all.")
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise RecipeError(f"--gpus {count}: this machine has {torch.cuda.device_count()}.")
    return count if count > 1 else None


def relaunch(count: int) -> int:
    """Run this same command in `count` processes under torch.distributed.run."""
    import subprocess
    import tempfile

    words = [
        word
        for i, word in enumerate(sys.argv[1:])
        if word != "--gpus" and not word.startswith("--gpus=") and (i == 0 or sys.argv[i] != "--gpus")
    ]
    launcher = ("torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "code"
        environment = os.environ | {CODE: str(told), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        command = [sys.executable, "-m", *launcher, "-m", "limbeck", *words]
        done = subprocess.run(command, env=environment, check=False).returncode
        return int(told.read_text()) if told.exists() else done


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def not_main() -> bool:
    return int(os.environ.get("RANK", "0")) > 0
