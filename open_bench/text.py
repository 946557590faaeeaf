"""Numbers as people read them."""

import math
from collections.abc import Iterable

_UNITS = (("years", 365 * 86_400), ("days", 86_400), ("h", 3_600), ("min", 60))


def duration(seconds: float) -> str:
    """42 s, 12 min, 3.2 h, 4.1 days, 2.0 years; "–" for NaN."""
    if math.isnan(seconds):
        return "–"
    for unit, size in _UNITS:
        if seconds >= (100 if unit == "min" else 2 * size if unit == "days" else 1.5 * size):
            return f"{seconds / size:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def compact(count: int) -> str:
    """300000 → "300k", 1000000 → "1M"."""
    return f"{count / 1e6:g}M" if count >= 1_000_000 else f"{count / 1e3:g}k"


def spans(numbers: Iterable[int]) -> str:
    """1, 2, 3, 7 → "1–3, 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found)


def many(count: int, one: str, several: str = "") -> str:
    """1, "seed" → "1 seed"; 2, "seed" → "2 seeds"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
