"""Verbs about what there is: evaluate, export, inspect, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from limbeck.cli.shared import (
    DONE,
    JsonFlag,
    QuietFlag,
    app,
    show_or_json,
)


@app.command()
def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, a student folder, or an exported folder or file.")
    ],
    checks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECK | OPTION=VALUE",
            help="quality, calibration, fidelity (asks the teacher too), speed, missing, writing, speculative, fid, clip-score; default: the recipe's. Options: speed batch_size=32 repeats=20, fid samples=10000 classifier=PLACE, clip-score model=PLACE.",
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

    show_or_json(entry, as_json, show)
    return DONE


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[
        str, typer.Option("--to", help="safetensors, transformers, diffusers, torch-export or onnx.")
    ] = "safetensors",
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
    show_or_json({"path": str(written)} | facts, as_json, lambda: print(written))
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
    show_or_json(facts, as_json, show)
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
    show_or_json(facts, as_json, show)
    return DONE
