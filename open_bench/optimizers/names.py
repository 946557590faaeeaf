"""The grammar of optimizer names, parsed once, from left to right.

    name      = head [":" settings] ["+" policy_loss] ["@" source]
    head      = a registered name | "optax." path | module ":" attribute
    settings  = key "=" value {"," key "=" value}, or "track=" and one of TRACKS
    policy_loss = "ppo" | "dpo" | "lpo"
    source    = everything after the first "@": a weights name, a file or directory, or "zero"

The source comes last and is taken as it stands, so a path may hold any character; settings and policy losses never
hold an "@". In ``lr=1e+3`` the "+" belongs to the number: a policy loss begins with a letter. ``{environment}`` in a
source stands for the name of the environment that it is used on.

A *grid* stands for several names: ``adam:learning_rate={1e-3,3e-3}`` (``expand``).
"""

import dataclasses
import itertools
import re
import tomllib
from typing import Any

from open_bench.errors import UserError, check_known

TRACKS = ("default", "published", "one_setting", "tuned")  # where all hyperparameters come from, when a name says so

_HEAD = re.compile(r"[A-Za-z_][\w.\-]*")
_ATTRIBUTE = re.compile(r":([A-Za-z_][\w.]*)(?![\w.]*=)")
_SETTINGS = re.compile(r":((?:[^+@]|\+(?![A-Za-z]))*)")
_POLICY_LOSS = re.compile(r"\+([A-Za-z_]\w*)")
_GRID = re.compile(r"\{([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class ParsedName:
    """The parts of an optimizer's name, in the order in which they are written."""

    head: str
    attribute: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()  # sorted by key
    policy_loss: str | None = None
    source: str | None = None
    track: str | None = None  # one of TRACKS

    def __str__(self) -> str:
        """The canonical spelling; parsing it gives the same parts."""
        text = self.head + (f":{self.attribute}" if self.attribute else "")
        settings = self.settings or ((("track", self.track),) if self.track else ())
        if settings:
            text += ":" + ",".join(f"{key}={_spell(value)}" for key, value in settings)
        text += f"+{self.policy_loss}" if self.policy_loss else ""
        return text + (f"@{self.source}" if self.source is not None else "")


def parse(name: str) -> ParsedName:
    """Take a name apart; raises UserError that shows where it stops making sense."""
    text, position = name.strip(), 0

    def take(pattern: re.Pattern[str]) -> str | None:
        nonlocal position
        match = pattern.match(text, position)
        if match is None:
            return None
        position = match.end()
        return match.group(match.lastindex or 0)

    head = take(_HEAD)
    if head is None:
        raise _malformed(name, position, "a name begins with a letter")
    attribute = take(_ATTRIBUTE)
    settings = take(_SETTINGS)
    policy_loss = take(_POLICY_LOSS)
    source = None
    if text[position : position + 1] == "@":
        source, position = text[position + 1 :], len(text)
        if not source:
            raise _malformed(name, position, "after '@' comes a weights name, a file or 'zero'")
    if position != len(text):
        raise _malformed(name, position, "expected NAME[:key=value,…][+policy_loss][@weights]")
    found = dict(_parse_settings(name, settings))
    track = found.pop("track", None)
    if track is not None:
        check_known("track", track, TRACKS)
        if found:
            raise UserError(
                f"optimizer '{name}': a track says where all settings come from: leave out {', '.join(found)}"
            )
    return ParsedName(head, attribute, tuple(found.items()), policy_loss, source, track)


def expand(name: str) -> list[str]:
    """The names that a grid stands for, the last setting varying fastest; a name without braces alone.

    Raises:
        UserError: an empty grid, or braces that do not match.
    """
    front, at, source = name.partition("@")
    parts = _GRID.split(front)  # text, grid, text, …, text
    grids = [[value.strip() for value in grid.split(",")] for grid in parts[1::2]]
    if any(brace in text for text in parts[::2] for brace in "{}"):
        raise UserError(f"optimizer '{name}': braces do not match: a grid is written key={{value,value}}")
    if not all(all(values) for values in grids):
        raise UserError(f"optimizer '{name}': a grid is empty, or one of its values is: write key={{value,value}}")
    return [
        "".join(itertools.chain(*zip(parts[::2], [*chosen, ""], strict=True))) + at + source
        for chosen in itertools.product(*grids)
    ]


def _parse_settings(name: str, text: str | None) -> tuple[tuple[str, Any], ...]:
    if text is None:
        return ()
    settings: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key) or not value:
            raise UserError(f"optimizer '{name}': expected key=value, found '{item}'")
        if key in settings:
            raise UserError(f"optimizer '{name}': '{key}' is set twice")
        settings[key] = parse_value(value)
    return tuple(sorted(settings.items()))


def parse_value(text: str) -> Any:
    """A number, true/false, none, or else the text itself."""
    lowered = text.strip().lower()
    if lowered in {"true", "false", "none"}:
        return {"true": True, "false": False, "none": None}[lowered]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, thousands of digits; nested too deeply
        pass
    try:
        return float(text)  # spellings that TOML lacks, such as 1. and .5
    except ValueError:
        return text.strip()


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _malformed(name: str, position: int, hint: str) -> UserError:
    return UserError(f"optimizer '{name}': cannot read '{name.strip()[position:]}' at character {position + 1}: {hint}")
