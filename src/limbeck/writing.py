"""Files of a run folder, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text)
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Plain data as JSON; figures that are not defined become null."""
    write(path, json.dumps(without_nan(value), indent=1, default=str) + "\n")


def without_nan(value: Any) -> Any:
    """Figures that are not defined become null: nan is not JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def link(source: str, target: str) -> None:
    """A second name for the same bytes, or a copy where the disk knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
