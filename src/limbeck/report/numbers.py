"""Numbers as a paper writes them: a true minus, thin gaps in thousands, a unit, no more digits than mean something."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
MINUS = "\u2212"
THIN = "\u202f"  # narrow, and a line never breaks there


def real(value: Any) -> float | None:
    """The value as a finite float, or None: what a JSON file calls null, NaN or a word is no number to show."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def plain(value: Any, digits: int = 3, *, zeros: bool = False) -> str:
    """Three significant digits: 0.0123, 1.23, 1 234; very large and very small in powers of ten.

    ``zeros`` keeps those at the end, so that the numbers of a column stand under each other.
    """
    number = real(value)
    if number is None:
        return NONE
    if number == 0:
        return "0"
    mantissa, _, power = f"{number:.{digits - 1}e}".partition("e")
    size = int(power)
    if size >= 6 or size < -4:
        return _sign(f"{mantissa.rstrip('0').rstrip('.')}e{size}")
    text = f"{number:,.{max(0, digits - 1 - size)}f}"
    return _sign(text.rstrip("0").rstrip(".") if "." in text and not zeros else text)


def share(value: Any, digits: int = 1) -> str:
    """A share of 1 in per cent: 0.931 is 93.1 %."""
    number = real(value)
    return NONE if number is None else _sign(f"{100 * number:.{digits}f}{THIN}%")


def points(value: Any, digits: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign: +2.0."""
    number = real(value)
    return NONE if number is None else _sign(f"{100 * number:+.{digits}f}")


def signed(value: Any) -> str:
    """Three significant digits with a sign."""
    number = real(value)
    return NONE if number is None else ("+" if number > 0 else "") + plain(number)


def count(value: Any) -> str:
    """A whole number: 61 706."""
    number = real(value)
    return NONE if number is None else _sign(f"{number:,.0f}")


def size(value: Any, *, zeros: bool = True) -> str:
    """Bytes in powers of ten, as disks are sold: 247 kB."""
    number = real(value)
    if number is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            written = plain(number, zeros=zeros and unit != "B")
            return f"{written}{THIN}{unit}"
        number /= 1000
    return f"{plain(number)}{THIN}TB"


def milliseconds(value: Any, *, zeros: bool = True) -> str:
    """A latency: 0.61 ms, or seconds from one second on."""
    number = real(value)
    if number is None:
        return NONE
    short, unit = (number, "ms") if abs(number) < 1000 else (number / 1000, "s")
    return f"{plain(short, zeros=zeros)}{THIN}{unit}"


def duration(value: Any) -> str:
    """Seconds as a person says them: 31 s, 2 min 5 s, 1 h 12 min."""
    number = real(value)
    if number is None:
        return NONE
    if number < 60:
        return f"{plain(number, 2 if number < 10 else 3)}{THIN}s"
    whole = round(number)
    hours, minutes, seconds = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}{THIN}h {minutes}{THIN}min" if hours else f"{minutes}{THIN}min {seconds}{THIN}s"


def times(value: Any) -> str:
    """A ratio: 12.4×."""
    number = real(value)
    return NONE if number is None else f"{plain(number)}×"


def _sign(text: str) -> str:
    if text[:1] in "+-" and not any(digit in text for digit in "123456789"):
        text = text[1:]  # what is written as zero has no sign
    return text.replace("-", MINUS).replace(",", THIN)
