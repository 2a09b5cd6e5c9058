"""How much of the teacher arrived, in one number: retention, and the share of the gap that was closed."""

from __future__ import annotations

import math


def retention(student: float | None, teacher: float | None, *, higher_is_better: bool = True) -> float | None:
    """student / teacher for figures where more is better, teacher / student otherwise; 1 = all of it arrived.

    None where the ratio means nothing: no teacher, a figure that is not finite, or one that is not above zero (a
    negative kappa, a loss of exactly 0). A student at 0 of a positive teacher retains 0, if more is better.
    """
    if student is None or teacher is None or not (math.isfinite(student) and math.isfinite(teacher)):
        return None
    above, below = (student, teacher) if higher_is_better else (teacher, student)
    return above / below if below > 0 and above >= 0 else None


def gap_closed(
    student: float | None, teacher: float | None, control: float | None, *, higher_is_better: bool = True
) -> float | None:
    """(student - control) / (teacher - control): 0 = no better than without a teacher, 1 = as good as the teacher.

    Below 0 the teacher did harm; above 1 the student passed it. None without all three, or where the teacher is not
    better than the control, for then there is no gap to close.
    """
    if student is None or teacher is None or control is None or not math.isfinite(student + teacher + control):
        return None
    sign = 1 if higher_is_better else -1
    return (student - control) / (teacher - control) if sign * (teacher - control) > 0 else None
