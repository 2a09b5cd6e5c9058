"""Export: one table of formats, a folder per export, filled aside and renamed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck import __version__
from limbeck.actors import Student
from limbeck.errors import RecipeError, nearest
from limbeck.models import adapters
from limbeck.shipping import card
from limbeck.shipping.package import Package, Rows

FORMATS = {
    name: f"limbeck.shipping.to_{name.replace('-', '_')}"
    for name in ("safetensors", "transformers", "diffusers", "torch-export", "onnx")
}
LATER = ("sentence-transformers",)
QUANTIZES = ("none", "int8")
FILE = "export.json"


def format_of(to: str, quantize: str = "none") -> ModuleType:
    """The module that writes a format: `NAME`, `QUANTIZES`, `NEEDS_NETWORK`, `write(package) -> facts`.

    Raises:
        RecipeError: no such format, or it cannot be quantised so.
    """
    if to in LATER:
        raise RecipeError(f"the export '{to}' is not there yet. There is: {', '.join(FORMATS)}.")
    if to not in FORMATS:
        raise RecipeError(f"unknown export '{to}'. {nearest(to, FORMATS)}")
    if quantize not in QUANTIZES:
        raise RecipeError(f"unknown quantize '{quantize}'. {nearest(quantize, QUANTIZES)}")
    found = importlib.import_module(FORMATS[to])
    if quantize not in found.QUANTIZES:
        able = [name for name, place in FORMATS.items() if quantize in importlib.import_module(place).QUANTIZES]
        raise RecipeError(
            f"{quantize} weights have no {to} form here. There is {quantize} with --to {' or '.join(able)}."
        )
    return found


def export(
    to: str,
    target: Path,
    *,
    student: Student | None = None,
    shipped: Path | None = None,
    rows: Rows | None = None,
    quantize: str = "none",
    result: dict[str, Any] | None = None,
) -> Path:
    """Write a student in a format into `target/<format>` and give the path of what was written.

    Args:
        student: the network; not needed for formats that copy.
        shipped: the student folder of the run.
        rows: data to trace and check with.
        result: what `result.json` says, for the card.

    Raises:
        RecipeError: it cannot be exported so; what stood there before still stands.
    """
    module = format_of(to, quantize)
    name = to if quantize == "none" else f"{to}-{quantize}"
    folder, aside = target / name, target / f".{name}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if module.NEEDS_NETWORK:
            assert student is not None
            student = _looked(student, rows)
            package = Package(student, aside, quantize, rows, shipped)
            facts = module.write(package) | _about(student)
            facts["beside"] = adapters.keep_beside(student.model, aside, package.origin())
        else:
            facts = module.copy(shipped, aside)
        facts = {"limbeck": __version__, "format": to, "quantize": quantize} | facts
        path = aside / facts["file"]
        facts["bytes"] = path.stat().st_size if path.is_file() else _size(aside)
        if result is not None:
            facts["task"] = {key: result["task"][key] for key in ("name", "metric")}
        (aside / FILE).write_text(json.dumps(facts, indent=1) + "\n")
        if facts.get("labels"):
            (aside / "labels.json").write_text(json.dumps(facts["labels"]) + "\n")
        told = sentences(facts)
        use = usage(to, folder, facts)
        if result is not None:
            card.write(aside, result, use=use, told=told)
        elif not (aside / "README.md").exists():
            (aside / "README.md").write_text(card.plain(folder.name, use, told))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return folder / facts["file"] if facts["file"] else folder


def refuse_methods(formats: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse an export that nothing could come of, by the methods alone.

    Raises:
        RecipeError: a format cannot hold what a method makes of the student.
    """
    for to in formats:
        unfit = getattr(format_of(to), "METHODS", {})
        for method in methods:
            if method in unfit:
                raise RecipeError(
                    f"export {to} and method {method} do not go together: {unfit[method]}. Leave the export out; the student's folder has all of it."
                )


def rehearse(formats: Sequence[str], student: Student, rows: Rows) -> None:
    """Refuse before training what could not be exported after it: a student that is no single graph, no such model.

    Raises:
        RecipeError: one of the formats cannot hold this student.
    """
    from limbeck.shipping import graph

    for to in formats:
        module = format_of(to)
        if to in ("onnx", "torch-export"):
            graph.traced(Package(_looked(student, rows), Path(), rows=rows), to)
        elif hasattr(module, "check"):
            module.check(student)


def sentences(facts: dict[str, Any]) -> list[str]:
    """What was checked, in words: for the card and the terminal."""
    told = list(facts.get("told", ()))
    if "check" in facts:
        c = facts["check"]
        before = "Before int8, checked" if "int8" in facts else "Checked"
        told.append(
            f"{before} against PyTorch on {c['samples']} {c.get('what', 'real samples')}: largest error {c['largest_error']:.2g} (tolerance {c['tolerance']:.2g})."
        )
    if "int8" in facts:
        m = facts["int8"]
        told.append(
            f"Int8 ({facts['how']}): {m['name']} {m['before']:.4f} before, {m['after']:.4f} after, on {m['samples']} samples of {m['split']}; "
            f"{facts['bytes_before']:,} bytes before, {facts['bytes']:,} after."
        )
    return told


def usage(to: str, folder: Path, facts: dict[str, Any]) -> str:
    """Python lines that load the export without Limbeck, where that can be."""
    if "usage" in facts:
        return str(facts["usage"])
    name = facts["file"]
    given = ", ".join(entry["name"] for entry in facts.get("inputs", ()))
    if to == "onnx":
        feed = ", ".join(f'"{entry["name"]}": {entry["name"]}' for entry in facts["inputs"])
        return f'import onnxruntime\nsession = onnxruntime.InferenceSession("{name}")\nlogits = session.run(None, {{{feed}}})[0]'
    if to == "torch-export":
        return f'import torch\nprogram = torch.export.load("{name}").module()\nlogits, *_ = program({given})'
    if to == "transformers":
        return f'from transformers import {facts["class"]}\nmodel = {facts["class"]}.from_pretrained("{folder.name}")'
    return f'from limbeck import Student\nstudent = Student("{folder.name}")\nsignals = student(batch)'


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _looked(student: Student, rows: Rows | None) -> Student:
    if rows is not None:
        view = student.look_at(rows.data.columns)
        view.check(list(rows.data.columns), student.whose, rows.data.source)
    return student


def _about(student: Student) -> dict[str, Any]:
    return {
        "class": type(student.model).__name__,
        "view": student.view.spec() if student.view is not None else None,
        "labels": student.labels,
        "parameters": student.parameters_count(),
    }


__all__ = ["FORMATS", "export", "format_of", "rehearse", "sentences", "usage"]
