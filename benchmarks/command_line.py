"""The command line of the evidence: which sets, which seeds, where runs go and where figures go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

EVIDENCE = Path(__file__).resolve().parent / "evidence"


def words(doc: str | None, work: str, *, seeds: int = 3, **own: dict[str, Any]) -> argparse.Namespace:
    """What was typed: `packs`, `seeds`, `work`, `out`, and the script's own words.

    Everything runs on one thread: the networks are so small that a second one costs more than it saves.

    Args:
        doc: the script's own text, shown by --help.
        work: where the run folders go, below /tmp, unless --work says where.
        seeds: how many there are unless --seeds names them.
        own: further words, each with what `add_argument` takes: `sets=some_of(SETS)`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True, metavar="FOLDER", help="the public sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)))
    parser.add_argument("--work", type=Path, default=Path("/tmp") / work, help="where the run folders go")
    parser.add_argument("--out", type=Path, default=EVIDENCE, help="where the figures go")
    for name, how in own.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **how)
    torch.set_num_threads(1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)  # before hours are spent on what goes there
    return given


def some_of(names: Iterable[str]) -> dict[str, Any]:
    """A word that takes one or more of these names; all of them where it is not said."""
    known = list(names)
    return {"nargs": "+", "default": known, "choices": known, "metavar": "NAME"}
