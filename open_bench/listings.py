"""Tables of what there is to compare: optimizers, environments, studies."""

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
    table = _table("environment", "family", "random", "budget", "env steps", "Adam", "origin")
    for name in config.shipped("environments"):
        environment = load_environment(name)
        known = references.get(name)
        random = f"{known.random.final_return.mean:.4g}" if known and known.random and known.random.final_return else "–"
        for index, (budget, steps) in enumerate(environment.budgets.items()):
            entry = known.reference.get(budget) if known else None
            adam = f"{entry.final_return.mean:.4g}" if entry and entry.final_return else "–"
            first = (name, environment.family, random) if index == 0 else ("", "", "")
            table.add_row(*first, budget, f"{steps:,}", adam, entry.origin if entry else "")
        table.add_section()
    others = ", ".join(gymnax_ids())
    return Group(table, Text(f"Any gymnax id works with default PPO settings: {others}.", style="dim"))


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


def _table(*columns: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
