"""Numbers, intervals and durations as people read them; every table, message and figure spells them this way."""

import math

_DURATIONS = (  # below so many seconds: unit, and its seconds
    (120, "s", 1),
    (7_200, "min", 60),
    (172_800, "h", 3_600),
    (63_115_200, "days", 86_400),
    (math.inf, "years", 31_557_600),
)


def number(value: float, places: int | None = None) -> str:
    """Enough digits to compare by: 6517, 167.1, 50.08, 0.52; "" for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.{_places(value) if places is None else places}f}"


def interval(value: float, low: float, high: float, places: int | None = None) -> str:
    """``0.93 [0.81, 1.04]``, without brackets where there is no interval, "" where there is no value."""
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        return number(value, places)
    places = _places(value) if places is None else places
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def duration(seconds: float) -> str:
    """Wall clock as 45 s, 12.5 min, 3.2 h or 4.0 days; "" for NaN."""
    if math.isnan(seconds):
        return ""
    for limit, unit, size in _DURATIONS:
        if seconds < limit:
            return f"{seconds / size:.{0 if size == 1 else 1}f} {unit}"
    raise ValueError(f"{seconds} is not a duration")


def rate(per_second: float) -> str:
    """``54,321``; "" for NaN."""
    return "" if math.isnan(per_second) else f"{per_second:,.0f}"


def compact(value: float) -> str:
    """Env steps as 0, 500k, 2.5M: four digits at most."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def listed(names: "list[str] | tuple[str, ...]", limit: int = 4) -> str:
    """``a, b, c, d and 3 more``."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _places(value: float) -> int:
    return 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
