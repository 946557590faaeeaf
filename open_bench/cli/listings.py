"""What there is, as tables for people and as JSON for programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from open_bench import config
from open_bench.cli import console
from open_bench.errors import UserError
from open_bench.text import compact, number

Row = Mapping[str, str]  # heading → cell
NARROWEST_TEXT = 24  # columns of a cell of words; with less, each row becomes a paragraph


@dataclasses.dataclass(frozen=True)
class Listing:
    """Rows twice: as JSON values, and as the cells of a table.

    Attributes:
        values: for programs.
        rows: for people; the first cell is the name, and stays whole, as it is there to be copied.
        prose: headings of cells of words, which may be broken over lines; numbers never are.
        heads: a heading above each row's group, "" where it has none.
        hints: lines below.
    """

    values: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    prose: frozenset[str] = frozenset()
    heads: Sequence[str] = ()
    hints: Sequence[str] = ()

    def print(self, as_json: bool) -> None:
        """Print it the one way or the other."""
        if as_json:
            console.show_json(list(self.values))
        else:
            console.show(self.drawn(console.width()))

    def drawn(self, width: int) -> Group:
        """A table, or paragraphs where a table would break numbers apart."""
        body = self._table() if self._narrowest() <= width else self._paragraphs()
        return Group(body, *(Text(hint, style="dim") for hint in self.hints))

    def _narrowest(self) -> int:
        total = 0
        for index, name in enumerate(self.rows[0] if self.rows else ()):
            cells = [name, *(row[name] for row in self.rows), *(self.heads if index == 0 else ())]
            longest = max(map(len, cells))
            total += 1 + (min(longest, NARROWEST_TEXT) if name in self.prose else longest)
        return total

    def _table(self) -> Table:
        table = Table(header_style="bold", box=None, pad_edge=False)
        for heading in self.rows[0] if self.rows else ():
            table.add_column(heading, overflow="fold", no_wrap=heading not in self.prose)
        for head, row in self._grouped():
            if head:
                table.add_row(Text(head, style="bold"))
            table.add_row(*map(Text, row.values()))
        return table

    def _paragraphs(self) -> Text:
        text = Text()
        for head, row in self._grouped():
            name, *rest = row.items()
            text.append(f"{head}\n" if head else "", style="bold").append(f"{name[1]}\n", style="bold")
            facts = [f"{heading}: {cell}" for heading, cell in rest if cell and heading not in self.prose]
            words = [f"  {cell}\n" for heading, cell in rest if cell and heading in self.prose]
            text.append("".join(words)).append("".join(f"  {fact}\n" for fact in facts))
        return text

    def _grouped(self) -> list[tuple[str, Row]]:
        heads = list(self.heads) or [""] * len(self.rows)
        new = [head if index == 0 or head != heads[index - 1] else "" for index, head in enumerate(heads)]
        return list(zip(new, self.rows, strict=True))


def optimizers() -> Listing:
    """Registered optimizers, plug-ins included."""
    from open_bench.optimizers import names, registry

    values: list[dict[str, Any]] = []
    for name in registry.available():
        try:
            spec = registry.find(names.parse(name))
        except UserError as error:
            values.append({"name": name, "error": str(error)})
            continue
        values.append(
            {"name": name, "description": spec.description, "policy_loss": spec.policy_loss.name,
             "learned": spec.needs_theta, "citation": spec.citation,
             "hyperparameters": {key: each.default for key, each in spec.hyperparameters.items()}}
        )  # fmt: skip
    rows = [
        {"optimizer": value["name"], "what it is": value.get("description") or f"cannot be used: {value['error']}",
         "policy loss": value.get("policy_loss", ""), "source": value.get("citation", "")}
        for value in values
    ]  # fmt: skip
    hint = (
        "Also: optax.NAME for anything in optax, package.module:attribute, settings as in adam:learning_rate=1e-3, "
        "another policy loss as in lion+dpo, and weights as in open@FILE."
    )
    return Listing(values, rows, frozenset({"what it is", "source"}), hints=[hint])


def algorithms() -> Listing:
    """Algorithms that learn, plug-ins included."""
    from open_bench.algorithms.registry import available, find_algorithm

    values: list[dict[str, Any]] = []
    for name in available():
        found = find_algorithm(name)
        settings = {key: each.default for key, each in found.Config.model_fields.items()}
        values.append(
            {"name": name, "description": found.description, "policy_loss": found.has_policy_loss,
             "acting_network": found.acting_network, "settings": settings, "citation": found.citation}
        )  # fmt: skip
    rows = [
        {"algorithm": value["name"], "what it is": value["description"],
         "policy loss": "yes" if value["policy_loss"] else "none", "source": value["citation"]}
        for value in values
    ]  # fmt: skip
    hint = "Used as in: openbench train adam -e cartpole --algorithm NAME; or a class of yours as module:Class."
    return Listing(values, rows, frozenset({"what it is", "source"}), hints=[hint])


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


def environments() -> Listing:
    """Shipped environments by family: each budget's env steps and, where it is known, Adam's return there."""
    from open_bench.environments.registry import identifiers, load_environment
    from open_bench.evaluation.baseline_returns import load_baseline_returns, returns_of

    baseline = load_baseline_returns()
    shipped = [load_environment(name) for name in config.shipped("environments")]
    order = list(dict.fromkeys([*FAMILIES, *(each.family for each in shipped)]))
    values, rows, heads = [], [], []
    for each in sorted(shipped, key=lambda each: order.index(each.family)):
        known = returns_of(baseline, each.name)
        adam = {name: known.adam(each.algorithm, name) for name in each.budgets}
        random = known.random.final_return.mean if known.random else None
        values.append(
            {"name": each.name, "family": each.family, "description": each.description, "algorithm": each.algorithm,
             "budgets": each.budgets, "random": random,
             "adam": {name: found.final_return.mean for name, found in adam.items() if found}}
        )  # fmt: skip
        budgets = {name: _budget(each.budgets.get(name), adam.get(name)) for name in BUDGETS}
        rows.append({"environment": f"  {each.name}", **budgets, "random": "–" if random is None else f"{random:.4g}"})
        heads.append(FAMILIES.get(each.family, each.family))
    hints = (
        "Budgets in env steps, with the final return of Adam where it is known: measured, or published where marked *.",
        f"Any gymnax id works with default settings: {', '.join(identifiers('gymnax'))}.",
        f"Any Brax task works as brax/TASK or brax/TASK/BACKEND: {', '.join(identifiers('brax'))}.",
    )
    return Listing(values, rows, heads=heads, hints=hints)


def _budget(steps: int | None, adam: Any) -> str:
    """Env steps and Adam's return, such as "300k: 9.686"."""
    if steps is None:
        return "–"
    mark = "*" if adam is not None and adam.origin == "published" else ""
    return compact(steps) if adam is None else f"{compact(steps)}: {adam.final_return.mean:.4g}{mark}"


KINDS = ("compare", "meta-training", "generalization")


def studies(kinds: Sequence[str] = KINDS) -> Listing:
    """Shipped studies of some kinds."""
    found = {"compare": _comparisons, "meta-training": _meta_trainings, "generalization": _generalizations}
    listed = [(kind, *each) for kind in kinds for each in found[kind]()]
    values = [{"kind": kind, **each.model_dump(mode="json")} for kind, each, _ in listed]
    rows = [
        {"study": each.name, "kind": kind, "what it is": each.description, "what it holds": holds}
        for kind, each, holds in listed
    ]
    hints = [
        "Used as in: openbench compare STUDY, openbench meta-train open --study STUDY -e ENVIRONMENT, "
        "openbench generalize open --study STUDY; or the path of a .toml of yours."
    ]
    return Listing(values, rows, frozenset({"what it is", "what it holds"}), hints=hints)


def _comparisons() -> list[tuple[Any, str]]:
    found = [config.load_study(name) for name in config.shipped("studies")]
    return [
        (each, f"{', '.join(each.optimizers)} on {', '.join(each.environments)}: {each.budget}, {each.num_seeds} seeds")
        for each in found
    ]


def _meta_trainings() -> list[tuple[Any, str]]:
    from open_bench.meta_training.spec import load_meta

    listed = []
    for name in config.shipped("meta"):
        each = load_meta(name)
        lifetime = f"{compact(each.env_steps)} env steps" if each.env_steps else each.budget
        where = ", ".join(each.environments) or "environments of yours"
        members = f"{each.population} × {each.generations} generations"
        listed.append((each.model_copy(update={"name": name}), f"{where}: {lifetime}; {members}, {each.strategy}"))
    return listed


def _generalizations() -> list[tuple[Any, str]]:
    from open_bench.generalization.study import load_generalization

    listed = []
    for name in config.shipped("generalize"):
        each = load_generalization(name)
        axes = ", ".join(dict.fromkeys(sweep.axis for sweep in each.sweeps))
        # Counted as written: to make the points is to make their environments, which takes seconds.
        points = sum(len(sweep.environments) * max(1, len(sweep.values)) for sweep in each.sweeps)
        listed.append((each, f"{axes}: {points} points, {each.num_seeds} seeds"))
    return listed


def weights() -> Listing:
    """Named weights: those that ship, then those in the user's library."""
    from open_bench.weights import library

    listed = library.list_weights()
    values = [{**each._asdict(), "path": str(each.path), "metadata": dict(each.metadata)} for each in listed]
    rows = [
        {"name": each.name, "optimizer": each.belongs_to, "hash": (each.hash or "")[:12], "place": each.place,
         "parameters": f"{each.parameters:,}" if each.parameters else "",
         "trained on": each.error or ", ".join(each.trained_on)}
        for each in listed
    ]  # fmt: skip
    return Listing(
        values, rows, frozenset({"optimizer", "trained on"}), hints=[f"Your library: {library.library_dir()}"]
    )


def weights_report(report: Mapping[str, Any]) -> Group:
    """What ``library.inspect`` found: facts, metadata, a line an array."""
    lines = [f"{report['kind']}, {report['parameters']:,} numbers", f"hash {report['hash'] or '(known once imported)'}"]
    if report.get("belongs_to"):
        lines.append(f"weights of {report['belongs_to']}")
    metadata = dict(report["metadata"])
    if isinstance(named := metadata.get("environments"), Mapping) and named:
        lines.append(f"trained on {', '.join(map(str, named))}")
        if not any(named.values()):  # the names are all there is
            del metadata["environments"]
    lines += [f"{key}: {value}" for key, value in _flat(metadata)]
    arrays = [
        {"array": name or "(flat vector)", "shape": " × ".join(map(str, shape))}
        for name, shape in report["arrays"].items()
    ]
    return Group(Text(str(report["path"]), style="bold"), *map(Text, lines), Listing([], arrays).drawn(console.width()))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested metadata as (dotted key, text), sorted."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return [pair for index, each in enumerate(value) for pair in _flat(each, f"{prefix}.{index}")]
    if isinstance(value, Mapping) and (value or not prefix):
        below = sorted(value.items(), key=lambda pair: str(pair[0]))
        return [pair for key, each in below for pair in _flat(each, f"{prefix}.{key}" if prefix else str(key))]
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return [(prefix, text if text and value not in (None, {}) else "–")]


def verified(table: Any) -> Listing:
    """Seeds that were run again (``Verification.rows``)."""
    rows = [
        {"environment": row["environment"], "optimizer": row["optimizer"], "seed": str(row["seed"]),
         "stored return": number(row["stored"]) or "none", "again": number(row["again"]) or "none",
         "agreement": row["agreement"]}
        for row in table.to_dict("records")
    ]  # fmt: skip
    return Listing(console.records(table), rows)


def findings(found: Sequence[Any]) -> Listing:
    """What ``openbench doctor`` has found."""
    values = [each._asdict() for each in found]
    rows = [
        {"what": each.name, "": {"ok": "ok", "note": "note", "wrong": "WRONG"}[each.status],
         "found": " – ".join(filter(None, (each.detail, each.advice)))}
        for each in found
    ]  # fmt: skip
    return Listing(values, rows, frozenset({"found"}))
