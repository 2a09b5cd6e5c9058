"""What a run pays for a teacher behind an endpoint: where its answers are kept, and when `limit.usd` is reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from limbeck.actors import Teacher
from limbeck.engine.trainer import Stopped
from limbeck.teachers.endpoint import Endpoint


def usd(teacher: Teacher | None) -> float | None:
    """US dollars that this run has paid so far, in all its parts; None without an endpoint."""
    asked = _asked(teacher)
    if not asked:
        return None
    return sum({str(one.journal.path.resolve()): one.spent for one in asked}.values())


def watch(
    teacher: Teacher | None, folder: Path, most: float | None, *, main: bool = True
) -> Callable[[], Stopped | None]:
    """Keep the answers of a run in `folder` for good, and tell when it has paid `most` US dollars.

    What is given back says so between two steps; and no question is asked any more once the limit is reached, so that
    more than `most` is paid only for what is under way.
    """
    asked = _asked(teacher)

    def over() -> Stopped | None:
        paid = usd(teacher) if asked and most is not None else None
        if paid is None or most is None or paid < most:
            return None
        return Stopped(
            "limit",
            f"limit.usd={most:g} is reached: {paid:.4g} US dollars are paid. All answers are kept, and what was trained is saved: "
            f"limbeck resume {folder} limit.usd=...",
        )

    def allowed() -> None:
        stopped = over()
        if stopped is not None:
            raise stopped

    for one in asked:
        one.keep_in(folder, main=main)
        one.allowed = allowed
    return over


def _asked(teacher: Teacher | None) -> list[Endpoint]:
    members = teacher.members.values() if teacher is not None else ()
    return [member for member in members if isinstance(member, Endpoint)]
