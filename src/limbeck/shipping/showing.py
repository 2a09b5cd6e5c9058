"""`limbeck inspect` of an exported folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.shipping.exporting import sentences


def look_at_export(path: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """What an exported folder holds, and what was checked when it was written."""

    def show() -> None:
        small = "" if facts["quantize"] == "none" else f", {facts['quantize']}"
        print(f"{path}: {facts.get('class', 'a student')} as {facts['format']}{small}, {facts['bytes']:,} bytes")
        for entry in facts.get("inputs", ()):
            print(f"  {entry['name']}: {entry['dtype']} {entry['shape']}")
        print("\n".join([*sentences(facts), f"Measure it: limbeck evaluate {path}"]))

    return facts, show
