"""An exported folder or file as a student again, to be measured as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.actors import Student
from limbeck.diffusion.network import Sampling
from limbeck.errors import RecipeError
from limbeck.models import adapters
from limbeck.shipping.exporting import FILE
from limbeck.shipping.runtime import Shipped


class ShippedStudent(Student):
    """A student whose network is a file; its sizes are those that were known when it was written."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        super().__init__(Shipped(path, facts), view=facts["view"], labels=facts["labels"])
        self.facts = facts

    def parameters_count(self) -> int:
        """How many parameters the network had."""
        return int(self.facts["parameters"])

    def bytes_count(self) -> int:
        """The size of the file."""
        return int(self.facts["bytes"])


def facts_of(place: str | Path) -> dict[str, Any] | None:
    """What `export.json` says beside or in this place; None for something else."""
    path = Path(place)
    file = (path if path.is_dir() else path.parent) / FILE
    return json.loads(file.read_text()) if file.exists() else None


def student(place: str | Path) -> Student:
    """The exported student.

    Raises:
        RecipeError: this is no export, or its file is gone.
    """
    facts = facts_of(place)
    if facts is None:
        raise RecipeError(f"{place} is no export: there is no {FILE} in it.")
    path = Path(place)
    folder = path if path.is_dir() else path.parent
    facts["view"] = adapters.at_home(facts.get("view"), folder)
    if facts["format"] == "safetensors":
        return Student(folder)
    if facts["format"] == "transformers":
        return Student(folder, view=facts["view"], labels=facts["labels"])
    if facts["format"] == "diffusers":
        found = Student(folder, args=facts["args"], view=facts["view"], labels=facts["labels"])
        found.model.sampling = Sampling(**facts["sampling"])  # type: ignore[assignment]
        return found
    file = folder / facts["file"]
    if not file.exists():
        raise RecipeError(f"{folder} lacks {facts['file']}, of which its {FILE} speaks. Export it again.")
    return ShippedStudent(file, facts)
