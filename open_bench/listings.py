"""Tables of what there is to compare: optimizers, environments, studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from open_bench import assets, config
from open_bench.environments import gymnax_ids
from open_bench.environments.catalogue import load_environment
from open_bench.errors import UserError
from open_bench.optimizers import available
from open_bench.optimizers.registry import resolve
from open_bench.scores.references import load_references


def optimizers() -> Group:
    """Registered optimizers, a line each."""
    table = _table("optimizer", "what it is", "objective", "source")
    for name in available():
        try:
            entry = resolve(name)
        except UserError as error:
            table.add_row(name, f"cannot be used: {error}", "", "")
            continue
        table.add_row(name, entry.description, entry.objective.name, entry.citation)
    hint = (
        "Also: optax.NAME for anything in optax, package.module:attribute, settings as in adam:learning_rate=1e-3, "
        "another policy objective as in lion+dpo, and weights as in open@FILE."
    )
    return Group(table, Text(hint, style="dim"))


def environments() -> Group:
    """Shipped environments with their budgets and measured returns of a random policy and of Adam."""
    references = load_references(assets.baselines_dir() / "returns")
    table = _table("environment", "family", "random", "budget", "steps", "Adam", "origin")
    for name in config.shipped("environments"):
        environment = load_environment(name)
        known = references.get(name)
        random = (
            f"{known.random.final_return.mean:.4g}" if known and known.random and known.random.final_return else "–"
        )
        for index, (budget, steps) in enumerate(environment.budgets.items()):
            entry = known.reference.get(budget) if known else None
            adam = f"{entry.final_return.mean:.4g}" if entry and entry.final_return else "–"
            first = (name, environment.family, random) if index == 0 else ("", "", "")
            table.add_row(*first, budget, _compact(steps), adam, entry.origin if entry else "")
        table.add_section()
    others = ", ".join(gymnax_ids())
    return Group(table, Text(f"Any gymnax id works with default PPO settings: {others}.", style="dim"))


def _compact(steps: int) -> str:
    """300000 → "300k", 1000000 → "1M"."""
    return f"{steps / 1e6:g}M" if steps >= 1_000_000 else f"{steps / 1e3:g}k"


def studies() -> Table:
    """Shipped studies."""
    table = _table("study", "what it is", "budget", "seeds", "optimizers", "environments")
    for name in config.shipped("studies"):
        study = config.load_study(name)
        table.add_row(
            name, study.description, study.budget, str(study.seeds),
            ", ".join(study.optimizers), ", ".join(study.environments),
        )  # fmt: skip
    return table


def weights_table(listed: Sequence[Any], library: Path) -> Group:
    """Named weights, a line each; ``listed`` are ``weights.Listed``."""
    table = _table("name", "kind", "parameters", "hash", "place", "")
    for item in listed:
        facts = (
            f"{item.parameters:,}" if item.parameters else "",
            (item.hash or "")[:12],
            item.place,
            item.error or "",
        )
        table.add_row(item.name, item.kind, *facts)
    return Group(table, Text(f"Your library: {library}", style="dim", overflow="fold"))


def weights_report(report: Mapping[str, Any]) -> Group:
    """What ``weights.inspect`` found."""
    lines = [f"{report['kind']}, {report['parameters']:,} numbers", f"hash {report['hash'] or '(known once imported)'}"]
    if report.get("belongs_to"):
        lines.append(f"the size of {report['belongs_to']}")
    lines += [f"{key}: {value}" for key, value in sorted(report["metadata"].items())]
    table = _table("array", "shape")
    for name, shape in report["arrays"].items():
        table.add_row(name or "(flat vector)", " × ".join(map(str, shape)))
    return Group(Text(str(report["path"]), style="bold"), *(Text(line) for line in lines), table)


def _table(*columns: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):  # names come first and are there to be copied, so they stay whole
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table
