"""The command line: parse, call, print. Everything it does can be done from Python."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from limbeck import later
from limbeck.errors import RecipeError

_CODE = "LIMBECK_EXIT_CODE"  # the file for the exit code of several processes
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


def main(arguments: list[str] | None = None) -> None:
    """The entry point: run a verb and turn what happens into a sentence and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, standalone_mode=False, prog_name="limbeck")
    except typer.Abort:
        code = INTERRUPTED
    except RecipeError as error:
        if debug:
            raise
        code = _fail(str(error), CANNOT_RUN)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = _other(error, debug)
    _part()
    sys.exit(_told(code or DONE))


def _part() -> None:
    """Leave the other processes in order: torch takes one that ends without for a crash."""
    distributed = sys.modules.get("torch.distributed")
    if "RANK" in os.environ and distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def _told(code: int) -> int:
    """The exit code, which one of several processes leaves for the one that started them: to their launcher every code but 0 is a crash."""
    told = os.environ.get(_CODE)
    if told is None:
        return code
    if not _not_main():
        Path(told).write_text(str(code))
    return DONE if code in (ANSWER_IS_NO, LIMIT, INTERRUPTED) else code


def _other(error: Exception, debug: bool) -> int:
    from limbeck.engine.checkpoint import DISK, CheckpointError
    from limbeck.engine.stepper import NonFiniteError
    from limbeck.engine.trainer import Stopped

    if hasattr(error, "format_message"):  # words that fit no verb; typer carries click's exceptions under its own name
        context = getattr(error, "ctx", None)
        return _fail(
            f"{error.format_message()} Help: {context.command_path if context else 'limbeck'} --help", CANNOT_RUN
        )
    if isinstance(error, Stopped):
        return _fail(str(error), LIMIT if error.reason == "limit" else INTERRUPTED)
    if debug:
        raise error
    if isinstance(error, (NonFiniteError, CheckpointError)):
        return _fail(str(error), FAULT)
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(
            f"A file could not be written{where}: {DISK[error.errno]}. The same command then goes on; nothing saved before is lost.",
            FAULT,
        )
    return _fail(
        f"{type(error).__name__}: {error}\nThis is a fault of Limbeck or of code it called; --debug shows where.", FAULT
    )


def _fail(sentence: str, code: int) -> int:
    if _not_main():
        sentence = f"process {os.environ['RANK']}: {sentence}"
    Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
    return code


def _show(value: Any, as_json: bool, otherwise: Callable[[], None]) -> None:
    if as_json:
        from limbeck.writing import without_nan

        print(json.dumps(without_nan(value), indent=1, default=str))
    else:
        otherwise()


def _finished(run: Any, as_json: bool) -> int:
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
                f"{'held' if line['held'] else 'MISSED'}: {line['text']} (it is {_number(line['value'])})",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        console.print(
            f"student: {run.folder}/student   report: {run.folder}/report.html", highlight=False, soft_wrap=True
        )

    _show(result, as_json, show)
    return DONE if all(line["held"] for line in result["require"]) else ANSWER_IS_NO


def _processes(gpus: str | None) -> int | None:
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


def _relaunch(count: int) -> int:
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
        environment = os.environ | {_CODE: str(told), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        command = [sys.executable, "-m", *launcher, "-m", "limbeck", *words]
        done = subprocess.run(command, env=environment, check=False).returncode
        return int(told.read_text()) if told.exists() else done


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where to leave the runs.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many repetitions.")] = 3,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Distil a model that sees and hears into one that only sees, on spoken and handwritten digits, in three minutes.

    Trains the teachers, the student alone, plain KD and MST-Distill, several seeds, and leaves a report.
    """
    from limbeck.demo import run_demo

    return run_demo(out, seeds=seeds, as_json=as_json, quiet=quiet)


@app.command()
def distill(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe file, a named recipe, or a run folder to repeat.")
    ],
    settings: Settings = None,
    out: OutFlag = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="Processes on this machine: a number, or all.")] = None,
    on_nonfinite: Annotated[
        str | None,
        typer.Option("--on-nonfinite", help="stop (default) or skip, when a loss or gradient is not finite."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows of the data that cannot be read, and say how many.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Train the student that RECIPE describes, and measure what arrived.

    Examples: `limbeck distill digits-kd` · `limbeck distill my.yaml train.epochs=5 method=kd+my_losses:gap` · `limbeck distill runs/my-1 --out runs/again`
    """
    count = _processes(gpus)
    changes = list(settings or [])
    if on_nonfinite is not None:
        changes.append(f"train.on_nonfinite={on_nonfinite}")
    if skip_bad:
        changes.append("data.skip_bad=true")
    if count is not None:
        from limbeck.recipe import Recipe

        Recipe.load(recipe, *changes)  # a mistake in the words is said once, here
        return _relaunch(count)
    from limbeck.run import distill as run_distill
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json or _not_main()) as terminal:
        run = run_distill(recipe, *changes, out=out, observer=terminal)
    return _finished(run, as_json) if not _not_main() else DONE


def _not_main() -> bool:
    return int(os.environ.get("RANK", "0")) > 0


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    settings: Settings = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="As many processes as the run was started with.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Go on with a run that was stopped, from its last checkpoint, to the same numbers as if it had never been."""
    count = _processes(gpus)
    if count is not None:
        return _relaunch(count)
    from limbeck.run import Run
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json or _not_main()) as terminal:
        done = Run(run).resume(*(settings or []), observer=terminal)
    return _finished(done, as_json) if not _not_main() else DONE


@app.command()
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, a student folder, or an exported folder or file.")
    ],
    checks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECK | OPTION=VALUE",
            help="quality, calibration, fidelity (asks the teacher too), speed, missing; default: the recipe's. Options of speed: batch_size=32 repeats=20.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which split to measure on.")] = "test",
    data: Annotated[str | None, typer.Option(help="Other data than the run's.")] = None,
    of: Annotated[str, typer.Option(help="student or teacher.")] = "student",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Measure the student (or the teacher) of a run, or an exported model, again: on its own data or on others.

    Examples: `limbeck evaluate runs/my-1 fidelity speed batch_size=64` · `limbeck evaluate runs/my-1/export/onnx-int8 fidelity`
    """
    from limbeck.measuring import evaluate as measured

    words = checks or []
    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    entry = measured(run, names or None, data=data, split=split, of=of, **options)

    def show() -> None:
        shown = Table(box=None, show_header=False)
        told = entry["figures"] | {key: entry.get(key) for key in ("retention", "parameters", "bytes", "latency_ms")}
        for name, value in (told | entry.get("speed", {})).items():
            shown.add_row(name, "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
        console = Console()
        if not quiet:
            console.print(f"{of} of {run} on {split}, {entry['samples']} samples", highlight=False, soft_wrap=True)
        console.print(shown)

    _show(entry, as_json, show)
    return DONE


@app.command()
def inspect(
    thing: Annotated[
        str | None,
        typer.Argument(
            metavar="THING", help="A model, data, a run or a recipe; nothing: this installation.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Data for a model's shapes: a few samples of it are shown to the model; a recipe: its data."
        ),
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Look at something before using it: a model's tap paths with shapes, data, a run; alone: versions and extras."""
    from limbeck.looking import look

    facts, show = look(thing, data)
    _show(facts, as_json, show)
    return DONE


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One method's card and options.", show_default=False)
    ] = None,
    needs: Annotated[
        str | None, typer.Option("--needs", help="Only those that read this signal of the teacher.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """What methods there are, and what each is for, needs and costs."""
    from limbeck.looking import look_at_method, look_at_methods

    facts, show = look_at_method(name) if name else look_at_methods(needs)
    _show(facts, as_json, show)
    return DONE


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, typer.Option("--to", help="safetensors, transformers, torch-export or onnx.")] = "safetensors",
    quantize: Annotated[str, typer.Option("--quantize", help="none or int8 (onnx, torch-export).")] = "none",
    push: Annotated[
        str | None, typer.Option("--push", help="A hub repository, owner/name, to upload the folder to.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="What to trace and check with, where the recipe can no longer be read.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Write the student of a run in another format, into RUN/export; graphs are checked against PyTorch on real samples.

    Examples: `limbeck export runs/my-1 --to onnx --quantize int8` · `limbeck export runs/my-1 --to transformers --push my-lab/student`
    """
    from limbeck.run import Run
    from limbeck.shipping.exporting import sentences
    from limbeck.shipping.opened import facts_of

    written = Run(run).export(to, quantize=quantize, push=push, data=data)
    facts = facts_of(written) or {}
    if not (quiet or as_json):
        for sentence in sentences(facts):
            Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
    _show({"path": str(written)} | facts, as_json, lambda: print(written))
    return DONE


@app.command()
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... KEY=VALUES...",
            help="Recipes or runs, and keys with their values, `method=kd,rkd` or `seed=0..4`; or comparisons to join.",
        ),
    ],
    tune: Annotated[
        int, typer.Option("--tune", min=0, help="Tuning trials for each arm, on the validation split.")
    ] = 0,
    latex: Annotated[Path | None, typer.Option("--latex", help="Write the tables as LaTeX here, too.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The comparison's folder; the same command goes on there, and adds what is new."),
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Run methods, or values of any key, on the same data with the same budget, and put them side by side.

    A comma outside brackets, or `0..4`, means several values. Runs that fail are shown with their reason; the exit code
    is 0 unless all of them failed (1).

    Examples: `limbeck compare my.yaml method=supervised,kd,rkd seed=0..4 --tune 20 --out nightly` · `limbeck compare runs/a runs/b` ·
    `limbeck compare here/comparison there/comparison --out joined`
    """
    from limbeck.comparing import compare as run_compare
    from limbeck.comparing.tables import terminal as shown
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json) as terminal:
        found = run_compare(*words, tune=tune, out=out, terminal=terminal)
    if latex is not None:
        latex.write_text(found.to_latex())
    result = found.result

    def show() -> None:
        console = Console()
        console.print(shown(result))
        pages = " ".join(str(page) for page in sorted(found.folder.glob("report*.html")))
        console.print(
            f"figures: {found.folder}/comparison.json   report: {pages or 'none'}", highlight=False, soft_wrap=True
        )

    _show(result, as_json, show)
    return FAULT if all(run["status"] == "failed" for run in result["runs"]) else DONE


@app.command()
def cache(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a named recipe, or a run folder.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The cache's folder (required); the same command goes on there.")
    ] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="Processes on this machine: a number, or all.")] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Workers of Ray: local, local:2, or the address of a cluster.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Ask the teacher of RECIPE about all its data, once; the folder is then a teacher: `teacher=FOLDER`.

    Examples: `limbeck cache my.yaml --out answers` · `limbeck cache my.yaml cache.dtype=fp32 cache.views=30 --out answers`
    """
    if out is None:
        raise RecipeError("limbeck cache needs a folder to write: --out DIR")
    count = _processes(gpus)
    if count is not None:
        if ray is not None:
            raise RecipeError("give --gpus or --ray, not both: Ray finds the devices of its machines itself.")
        return _relaunch(count)
    from limbeck.caching.filling import cache as run_cache
    from limbeck.looking import look_at_cache
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json or _not_main()) as terminal:
        run_cache(recipe, *(settings or []), out=out, ray=ray, observer=terminal)
    if not _not_main():
        facts, show = look_at_cache(out)
        _show(facts, as_json, show)
    return DONE


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a named recipe, or a run folder.")],
    settings: Settings = None,
    on: Annotated[
        str | None, typer.Option("--on", help="24GB, h100, 4x24GB: predict the memory there; default: this machine.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="US dollars for an hour of one device.", show_default=False)
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", help="How many times as fast --on is as this machine.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Does it fit, how long will it take, what will it cost: a few real steps of RECIPE are made, and nothing is kept.

    The exit code is 3 when it does not fit the device or the recipe's `limit`.

    Examples: `limbeck plan my.yaml` · `limbeck plan my.yaml --on 24GB train.batch_size=256` · `limbeck plan my.yaml limit.hours=2 --price 2.5`
    """
    from limbeck.planning import of_process
    from limbeck.planning.showing import show
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json) as terminal:
        made = of_process(recipe, *(settings or []), on=on, price=price, speed=speed, observer=terminal)
    _show(made.to_dict(), as_json, lambda: show(made, Console()))
    return DONE if made.fits else ANSWER_IS_NO


def _later(verb: str, function: Callable[..., Any]) -> None:
    def command(words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        function()

    command.__doc__ = function.__doc__
    app.command(verb, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(command)


for _verb in ("suggest",):
    _later(_verb, getattr(later, _verb))
