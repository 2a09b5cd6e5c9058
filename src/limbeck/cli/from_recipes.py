"""Verbs whose first word is a recipe: demo, distill, resume, plan, cache, compare, suggest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from limbeck import later
from limbeck.cli.shared import (
    ANSWER_IS_NO,
    DONE,
    FAULT,
    JsonFlag,
    OutFlag,
    QuietFlag,
    Settings,
    app,
    finished,
    not_main,
    processes,
    relaunch,
    show_or_json,
)
from limbeck.errors import RecipeError


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
    count = processes(gpus)
    changes = list(settings or [])
    if on_nonfinite is not None:
        changes.append(f"train.on_nonfinite={on_nonfinite}")
    if skip_bad:
        changes.append("data.skip_bad=true")
    if count is not None:
        from limbeck.recipe import Recipe

        Recipe.load(recipe, *changes)  # a mistake in the words is said once, here
        return relaunch(count)
    from limbeck.run import distill as run_distill
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json or not_main()) as terminal:
        run = run_distill(recipe, *changes, out=out, observer=terminal)
    return finished(run, as_json) if not not_main() else DONE


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    settings: Settings = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="As many processes as the run was started with.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Go on with a run that was stopped, from its last checkpoint, to the same numbers as if it had never been."""
    count = processes(gpus)
    if count is not None:
        return relaunch(count)
    from limbeck.run import Run
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json or not_main()) as terminal:
        done = Run(run).resume(*(settings or []), observer=terminal)
    return finished(done, as_json) if not not_main() else DONE


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
    show_or_json(made.to_dict(), as_json, lambda: show(made, Console()))
    return DONE if made.fits else ANSWER_IS_NO


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
    count = processes(gpus)
    if count is not None:
        if ray is not None:
            raise RecipeError("give --gpus or --ray, not both: Ray finds the devices of its machines itself.")
        return relaunch(count)
    from limbeck.caching.filling import cache as run_cache
    from limbeck.looking import look_at_cache
    from limbeck.terminal import Terminal

    with Terminal(quiet=quiet or as_json or not_main()) as terminal:
        run_cache(recipe, *(settings or []), out=out, ray=ray, observer=terminal)
    if not not_main():
        facts, show = look_at_cache(out)
        show_or_json(facts, as_json, show)
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

    show_or_json(result, as_json, show)
    return FAULT if all(run["status"] == "failed" for run in result["runs"]) else DONE


def _later(verb: str, function: Callable[..., Any]) -> None:
    def command(words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        function()

    command.__doc__ = function.__doc__
    app.command(verb, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(command)


for _verb in ("suggest",):
    _later(_verb, getattr(later, _verb))
