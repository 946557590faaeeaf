"""Tables of what there is: optimizers, environments, studies, recipes for meta-training, weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from open_bench import config
from open_bench.environments.registry import identifiers, load_environment
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import BaselineReturn, load_baseline_returns, returns_of
from open_bench.evaluation.text import compact
from open_bench.generalization.study import load_preset, make_points
from open_bench.optimizers import available
from open_bench.optimizers.registry import resolve


def optimizers() -> Group:
    """Registered optimizers, a line each."""
    table = _table("optimizer", "what it is", "policy_loss", "source")
    for name in available():
        try:
            spec = resolve(name)
        except UserError as error:
            table.add_row(name, f"cannot be used: {error}", "", "")
            continue
        table.add_row(name, spec.description, spec.policy_loss.name, spec.citation)
    hint = (
        "Also: optax.NAME for anything in optax, package.module:attribute, settings as in adam:learning_rate=1e-3, "
        "another policy loss as in lion+dpo, and weights as in open@FILE."
    )
    return Group(table, Text(hint, style="dim"))


FAMILIES = {
    "minatar": "MinAtar, by gymnax",
    "classic": "classic control, by gymnax",
    "bsuite": "bsuite, by gymnax",
    "misc": "others, by gymnax",
    "gridworld": "gridworlds (Oh et al. 2020)",
    "brax": "Brax: continuous control on accelerators",
    "craftax": "Craftax, with open-bench[craftax]",
}
BUDGETS = ("quick", "short", "full")


def environments() -> Group:
    """Shipped environments by family: each budget's env steps and, where it is known, Adam's return there."""
    stored = load_baseline_returns()
    shipped = [load_environment(name) for name in config.shipped("environments")]
    families = dict.fromkeys([*FAMILIES, *(environment.family for environment in shipped)])
    table = _table("environment", *BUDGETS, "random")
    for family in families:
        members = [environment for environment in shipped if environment.family == family]
        if members:
            table.add_row(Text(FAMILIES.get(family, family), style="bold"))
        for environment in members:
            known = returns_of(stored, environment.name)
            budgets = [_budget(environment.budgets.get(name), known.adam("ppo", name)) for name in BUDGETS]
            random = f"{known.random.final_return.mean:.4g}" if known.random else "–"
            table.add_row(f"  {environment.name}", *budgets, random)
        table.add_section()
    hints = (
        "Budgets in env steps, with the final return of Adam where it is known: measured, or published where marked *.",
        f"Any gymnax id works with default PPO settings: {', '.join(identifiers('gymnax'))}.",
        f"Any Brax task works as brax/TASK or brax/TASK/BACKEND: {', '.join(identifiers('brax'))}.",
    )
    return Group(table, *(Text(hint, style="dim") for hint in hints))


def _budget(steps: int | None, reference: BaselineReturn | None) -> str:
    """Env steps and the reference return, such as "300k: 9.686"."""
    if steps is None:
        return "–"
    mark = "*" if reference is not None and reference.origin == "published" else ""
    return f"{compact(steps)}: {reference.final_return.mean:.4g}{mark}" if reference is not None else compact(steps)


def studies() -> Table:
    """Shipped studies."""
    table = _table("study", "what it is", "budget", "seeds", "optimizers", "environments")
    for name in config.shipped("studies"):
        study = config.load_study(name)
        table.add_row(
            name, study.description, study.budget, str(study.num_seeds),
            ", ".join(study.optimizers), ", ".join(study.environments),
        )  # fmt: skip
    return table


def recipes() -> Group:
    """Shipped recipes for meta-training."""
    table = _table("recipe", "what it is", "how")
    for name in config.shipped("meta"):
        recipe = config.load_meta(name)
        lifetime = f"{compact(recipe.env_steps)} steps" if recipe.env_steps else recipe.budget
        where = ", ".join(recipe.environments) or "yours"
        how = f"{where}: {lifetime}; {recipe.population} × {recipe.generations} generations, {recipe.strategy}"
        table.add_row(name, recipe.description, how)
    return Group(table, Text("Used as in: openbench meta-train open --config NAME -e ENVIRONMENT", style="dim"))


def presets() -> Table:
    """Shipped presets of generalization studies, with their axes and the number of tasks."""
    table = _table("preset", "what it is", "seeds", "tasks", "axes")
    for name in config.shipped("generalize"):
        preset = load_preset(name)
        points = make_points(preset)
        axes = ", ".join(dict.fromkeys(point.axis for point in points))
        tasks = len({point.key for point in points})
        table.add_row(name, preset.description, str(preset.num_seeds), str(tasks), axes)
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
