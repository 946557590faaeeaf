"""Damage: bytes, text and nested values changed in ways drawn from dice."""

import copy
import json
from random import Random
from typing import Any

PIECES = (
    b"",
    b"\0",
    b"(",
    b"[" * 3000,
    b"{",
    b"'",
    b'"',
    b"\n",
    b"=",
    b"99",
    b"-1",
    b"1e400",
    b"nan",
    b"\xff\xfe",
    b"../",
)
# What JSON can say and nobody expects.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e20, 1e300, float("inf"), float("nan"), "",
    "adam", "1", "nan", "../../etc/passwd", "/etc/passwd", "a\0b", "é\ud800", "x" * 5000, "=1+1", [], [[]], [1, "a"],
    {}, {"a": {}}, {"": 1}, [0] * 1000,
)  # fmt: skip
# The same for TOML, which has neither null nor lone surrogates.
ODD_TOML = tuple(value for value in ODD if value is not None and value != "é\ud800")


def spoiled_bytes(data: bytes, dice: Random, within: int | None = None) -> bytes:
    """One to four places (among the first ``within`` bytes) replaced, cut out, doubled, or cut off after."""
    content = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(min(len(content), within or len(content)) or 1)
        length = dice.choice((0, 1, 1, 2, 4, dice.randint(0, 64)))
        how = dice.random()
        if how < 0.4:
            content[place : place + length] = dice.choice(PIECES)
        elif how < 0.7:
            content[place : place + length] = dice.randbytes(length)
        elif how < 0.8:
            content[place:place] = content[place : place + length]
        elif how < 0.9:
            del content[place : place + length]
        else:
            del content[place:]
    return bytes(content)


def spoiled_value(value: Any, dice: Random, odd: tuple[Any, ...] = ODD) -> Any:
    """A copy of nested dicts and lists with one to three places replaced, removed, renamed or joined by another."""
    value = copy.deepcopy(value)
    for _ in range(dice.choice((1, 1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return dice.choice(odd)
        holder, key = dice.choice(places)
        how = dice.random()
        if how < 0.6:
            holder[key] = copy.deepcopy(dice.choice(odd))
        elif how < 0.75:
            del holder[key]
        elif isinstance(holder, dict):
            name = dice.choice(("self", "name", "source", "x", "", "é", key.upper(), key[:-1]))
            holder[name] = holder.pop(key) if how < 0.9 else copy.deepcopy(dice.choice(odd))
        else:
            holder.append(copy.deepcopy(holder[key]))
    return value


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def spoiled_json(data: bytes, dice: Random) -> bytes:
    """JSON with other values, or with spoiled bytes."""
    if dice.random() < 0.2:
        return spoiled_bytes(data, dice)
    return json.dumps(spoiled_value(json.loads(data), dice), indent=1, sort_keys=True).encode()


def spoiled_table(data: bytes, dice: Random) -> bytes:
    """CSV with other cells, lines or columns, or with spoiled bytes."""
    if dice.random() < 0.2:
        return spoiled_bytes(data, dice)
    lines = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(dice.choice((1, 1, 2, 3))):
        line = dice.choice(lines)
        how = dice.random()
        if how < 0.7 and line:
            value = dice.choice(ODD)
            line[dice.randrange(len(line))] = str(value).encode(errors="ignore").decode()[:400]
        elif how < 0.8:
            lines.append(list(line))
        elif how < 0.9 and line:
            del line[dice.randrange(len(line))]
        elif len(lines) > 1:
            lines.remove(line)
    return ("\n".join(",".join(line) for line in lines) + "\n").encode()


def spoiled_text(text: str, dice: Random) -> str:
    """A few characters replaced, removed, doubled or added."""
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(text) + 1)
        piece = dice.choice(
            ("", *"+@:=,.{}()[]-_ \n\0é1e", "{1,2}", "9" * 400, "+dpo", "@zero", text[place : place + 3])
        )
        text = text[:place] + piece + text[place + dice.choice((0, 1, 1, 3)) :]
    return text
