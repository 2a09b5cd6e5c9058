"""The model card: what the student is, how good, against what, what was checked, and how to load it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_WHO = {
    "student": "this student",
    "control": "the same student without a teacher",
    "teacher": "teacher",
}


def write(folder: Path, result: Mapping[str, Any], *, use: str | None = None, told: Sequence[str] = ()) -> None:
    """`README.md` in the folder: the text, under the hub's metadata where huggingface_hub is installed.

    Args:
        result: what `result.json` says.
        use: Python lines that load what lies there; None: those for a student folder.
        told: sentences about the export: the error against PyTorch, what int8 cost.
    """
    text = body(
        result, use or f'from limbeck import Student\nstudent = Student("{folder}")\nsignals = student(batch)', told
    )
    (folder / "README.md").write_text(f"---\n{head(result, folder)}\n---\n\n{text}" if _hub() else text)


def body(result: Mapping[str, Any], use: str, told: Sequence[str] = ()) -> str:
    """The text of the card, with the run's real figures."""
    task, student = result["task"], result["student"]
    metric = task["metric"]
    lines = [f"# {result['name']}", ""]
    lines += [f"A {student['name']} for {task['name']}, distilled with Limbeck by {result['method']}.", ""]
    lines += [f"| | {metric} on {result['split']} ({result['samples']} samples) | parameters |", "|---|---|---|"]
    for who, words in _WHO.items():
        entry = result[who]
        if entry:
            lines.append(f"| {words} | {entry['metric']:.4f} | {entry['parameters']:,} |")
    lines += [""]
    if result.get("retention") is not None:
        lines += [f"Retention (student against teacher): {result['retention']:.3f}.", ""]
    if student.get("view"):
        lines += [f"It is shown: {', '.join(student['view'])}.", ""]
    if task.get("labels"):
        names = list(map(str, task["labels"]))
        lines += [f"Its classes, in order: {', '.join(names[:100])}{' ...' if len(names) > 100 else ''}.", ""]
    lines += [*told, ""] if told else []
    lines += ["```python", use, "```", "", f"Made with: `{result['command']}`", "", "The student is yours."]
    return "\n".join(lines) + "\n"


def head(result: Mapping[str, Any], folder: Path | None = None) -> str:
    """The hub's metadata as YAML: name, tags, and the figures as a result that the hub can list."""
    from huggingface_hub import EvalResult, ModelCardData

    task, student = result["task"], result["student"]
    data = _data(folder) or "the run's data"
    figures = {task["metric"]: student["metric"]} | student.get("figures", {})
    results = [
        EvalResult(
            task_type="other",
            task_name=task["name"],
            dataset_type="other",
            dataset_name=data,
            dataset_split=result["split"],
            metric_type=name,
            metric_value=round(float(value), 6),
        )
        for name, value in figures.items()
        if isinstance(value, (int, float))
    ]
    card = ModelCardData(
        model_name=result["name"],
        library_name="limbeck",
        tags=["knowledge-distillation", *str(result["method"]).replace(",", "").split(" + ")],
        eval_results=results,
    )
    return card.to_yaml()


def plain(name: str, use: str, told: Sequence[str] = ()) -> str:
    """The card of a student whose run left no figures."""
    return "\n".join([f"# {name}", "", "A student distilled with Limbeck.", "", *told, "", "```python", use, "```", ""])


def _data(folder: Path | None) -> str | None:
    """The name of the data, from the facts of the run that the folder lies in; paths are shortened to their last part."""
    for place in folder.resolve().parents if folder is not None else ():
        facts = place / "environment.json"
        if facts.exists():
            return Path(str(json.loads(facts.read_text()).get("data", ""))).name or None
    return None


def _hub() -> bool:
    return importlib.util.find_spec("huggingface_hub") is not None
