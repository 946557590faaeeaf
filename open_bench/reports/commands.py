"""The command that makes a stored experiment again, from its identity; a study of generalization or an evolution, from
how it was asked for."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from open_bench.config import build
from open_bench.errors import UserError
from open_bench.meta_training.spec import ImitationConfig, MetaConfig

Identity = Mapping[str, Any]


def commands(identities: Iterable[Identity], num_seeds: Mapping[str, int]) -> tuple[str, ...]:
    """Commands that together train these experiments of one optimizer; environments that need the same share one.

    Args:
        identities: what ``experiment.json`` holds.
        num_seeds: how many seeds are stored, by environment.
    """
    found = []
    for (optimizer, *options), environments in _grouped(
        (identity, ("--num-seeds", str(num_seeds[identity["environment"]]), "--root-seed", str(identity["root_seed"])))
        for identity in identities
    ).items():
        where = [word for name in environments for word in ("-e", name)]
        if len(environments) == 1:
            found.append(shlex.join(["openbench", "train", optimizer, *where, *options]))
        else:
            found.append(shlex.join(["openbench", "compare", "-o", optimizer, *where, *options, "--no-baseline"]))
    return tuple(found)


def tune_commands(identities: Iterable[Identity], amounts: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Commands that together run these trials of one optimizer again.

    Args:
        identities: what ``tuning.json`` holds.
        amounts: how many trials, beside trial 0, and seeds are stored, by environment.
    """
    told = {name: ("--trials", str(trials), "--num-seeds", str(seeds)) for name, (trials, seeds) in amounts.items()}
    groups = _grouped((identity, told[identity["environment"]]) for identity in identities)
    return tuple(
        shlex.join(["openbench", "tune", optimizer, *(w for name in environments for w in ("-e", name)), *options])
        for (optimizer, *options), environments in groups.items()
    )


# What `openbench generalize` is asked with, beside optimizers; the file of a request holds what was given.
_STUDY_OPTIONS = ("study", "train_on", "axes", "num_seeds", "root_seed", "normalize", "algorithm", "budget", "steps",
                  "vmap_size", "settings", "hyperparameters")  # fmt: skip
_SPELLED = {"axes": "axis", "settings": "set", "environments": "env", "env_steps": "steps", "teachers": "imitate"}
# Of a meta-training: what is no option, or follows from what was found.
_NOT_ASKED = {"name", "description", "stages", "imitation", "vmap_size"}


def generalize_command(request: Mapping[str, Any], axis: str | None = None) -> tuple[str, ...]:
    """The command of a study of generalization; ``axis``: of that axis alone."""
    asked = {name: request.get(name) for name in _STUDY_OPTIONS} | ({"axes": [axis]} if axis is not None else {})
    return (shlex.join(["openbench", "generalize", *map(str, request["optimizers"]), *_spelled(asked)]),)


def meta_train_command(name: str, metadata: Mapping[str, Any], generations: int) -> tuple[str, ...]:
    """The command of an evolution, from the metadata of its weights; none where they do not tell."""
    try:
        config = build(MetaConfig, {**metadata["config"], "generations": generations}, name)
        optimizer = str(metadata["optimizer"])
        if metadata.get("parent") is not None:
            optimizer += f"@{metadata['ancestors'][-1]['name']}"
        vmap_size = int(metadata["identity"]["vmap_size"])
    except (UserError, KeyError, TypeError, IndexError, ValueError):
        return ()
    asked = _differing(config, MetaConfig(), _NOT_ASKED) | {"vmap_size": vmap_size, "name": name}
    if config.imitation is not None:
        teachers = config.imitation.teachers
        changed = _differing(config.imitation, ImitationConfig(teachers=teachers), {"teachers"})
        asked |= {"teachers": teachers} | {f"imitation_{key}": value for key, value in changed.items()}
    return (shlex.join(["openbench", "meta-train", optimizer, *_spelled(asked)]),)


def _differing(config: Any, usual: Any, left_out: set[str]) -> dict[str, Any]:
    return {key: value for key, value in config if key not in left_out and value != getattr(usual, key)}


def _spelled(asked: Mapping[str, Any]) -> list[str]:
    """Options with their values, those of tables and lists repeated; what is None was not asked."""
    words: list[str] = []
    for key, value in asked.items():
        option = f"--{_SPELLED.get(key, key).replace('_', '-')}"
        if isinstance(value, Mapping):
            several: Sequence[Any] = [f"{name}={_value(each)}" for name, each in value.items()]
        else:
            several = value if isinstance(value, list | tuple) else [] if value is None else [value]
        words += [word for each in several for word in (option, _value(each))]
    return words


def _grouped(wanted: Iterable[tuple[Identity, tuple[str, ...]]]) -> dict[tuple[str, ...], list[str]]:
    """Environments by what is asked for: the optimizer and the options, among them those given.

    Environments with options of their own are left out: nothing on the command line gives those.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for identity, more in wanted:
        environment = identity["environment"]
        if "{" not in environment:
            several = groups.setdefault((_optimizer(identity), *_options(identity), *more), [])
            several += [name for name in [_base(environment)] if name not in several]
    return groups


def _options(identity: Identity) -> list[str]:
    """Algorithm, length, vmap size (trials have several), and the settings that an environment's name says."""
    budget, settings = identity["budget"], identity["settings"]
    steps = budget.removeprefix("steps-")
    length = ["--budget", budget] if steps == budget else ["--steps", steps]
    named = re.findall(r"[\[,](\w+)=", identity["environment"].removeprefix(_base(identity["environment"])))
    changed = [f"{key}={_value(settings[key])}" for key in named if key in settings]
    vmap_size = ["--vmap-size", str(identity["vmap_size"])] if "vmap_size" in identity else []
    return [
        "--algorithm",
        identity["algorithm"],
        *length,
        *vmap_size,
        *(w for each in changed for w in ("--set", each)),
    ]


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


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
