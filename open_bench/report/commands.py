"""The command that makes a stored experiment again, from its identity."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Identity = Mapping[str, Any]


def commands(identities: Sequence[Identity], num_seeds: Mapping[str, int]) -> tuple[str, ...]:
    """Commands that together train these experiments of one optimizer; environments that need the same share one.

    Args:
        identities: what ``experiment.json`` holds.
        num_seeds: how many seeds are stored, by environment.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for identity in identities:
        arguments = _arguments(identity, num_seeds[identity["environment"]])
        if arguments is not None:
            groups.setdefault(arguments, []).append(_base(identity["environment"]))
    return tuple(_command(environments, *arguments) for arguments, environments in groups.items())


def _command(environments: Iterable[str], optimizer: str, *options: str) -> str:
    several = list(dict.fromkeys(environments))
    where = [word for name in several for word in ("-e", name)]
    if len(several) == 1:
        return shlex.join(["openbench", "train", optimizer, *where, *options])
    return shlex.join(["openbench", "compare", "-o", optimizer, *where, *options, "--no-baseline"])


def _arguments(identity: Identity, num_seeds: int) -> tuple[str, ...] | None:
    """The optimizer and the options; None where the environment has options of its own, which no option gives."""
    environment, budget = identity["environment"], identity["budget"]
    if "{" in environment:
        return None
    steps = budget.removeprefix("steps-")
    length = ("--budget", budget) if steps == budget else ("--steps", steps)
    settings = [f"{key}={_value(identity['settings'][key])}" for key in _changed(environment, identity["settings"])]
    return (
        _optimizer(identity), "--algorithm", identity["algorithm"], *length, "--num-seeds", str(num_seeds),
        "--root-seed", str(identity["root_seed"]), "--vmap-size", str(identity["vmap_size"]),
        *(word for setting in settings for word in ("--set", setting)),
    )  # fmt: skip


def _optimizer(identity: Identity) -> str:
    """Its name: without the digest of its file, and with the track that was asked for."""
    name = re.sub(r"#[0-9a-f]{6,}", "", identity["optimizer"])
    if not identity.get("track"):
        return name
    head = re.match(r"[^+@]*", name)
    assert head is not None
    return f"{head[0]}:track={identity['track']}{name[head.end() :]}"


def _base(environment: str) -> str:
    return environment.partition("[")[0]


def _changed(environment: str, settings: Mapping[str, Any]) -> list[str]:
    """Settings of the algorithm that the environment's name says were changed: ``name[hidden=16x16,num_envs=16]``."""
    named = re.findall(r"[\[,](\w+)=", environment.removeprefix(_base(environment)))
    return [key for key in named if key in settings]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
