"""Make evolved weights ship: the weights, their training history, and a model card, in baselines/weights.

    python tooling/publish_weights.py results/meta/mine --as open --results results/quick

``<name>.safetensors`` and ``<name>.history.csv`` are copied from the evolution's folder; with its last checkpoint, kept
in results/published/meta/<evolution>, it can be continued. Training curves are drawn there, those of a stage
<evolution>-imitation, too. An imitation alone can be published as well. ``<name>.md`` is written from the weights'
metadata and from stored runs with exactly these weights: nothing on a card is typed by hand but the note.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd

from open_bench import files
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.evaluation.style import save
from open_bench.experiments.session import load_runs
from open_bench.meta_training.checkpoint import HISTORY, IMITATION
from open_bench.meta_training.figure import history_figure, imitation_figure
from open_bench.weights.format import Weights, load_weights

TARGET = files.baselines_dir() / "weights"
EVOLUTIONS = Path(__file__).resolve().parents[1] / "results" / "published" / "meta"
STAGE = "-imitation"  # which comes before the evolution of that name
BASELINE = "adam"
EXPLAINED = {
    True: "Fitness is the mean over the population, the mean θ is evaluated on keys that are never trained on.",
    False: "The loss is in units of the teacher's learning rate. Of teacher: 1 is its return, 0 the random policy's.",
}
PAIRED = ["environment", "algorithm", "env_steps", "root_seed"]


def card(name: str, weights: Weights, history: pd.DataFrame, curves: list[Path], results: list[Path], note: str) -> str:
    """The model card, in Markdown."""
    facts = weights.metadata
    evolved = "fitness_mean" in history
    parts = [
        f"# {name}",
        f"Weights of `{facts['optimizer']}`, {'evolved' if evolved else 'fitted'} by this project. "
        f"{facts['parameters']:,} meta-parameters, hash `{weights.hash[:12]}`.",
        note,
        "## How they were made",
        _made(facts),
        "## Training history",
        f"All of it is in `{name}.history.csv`. {EXPLAINED[evolved]}",
        _history(history) if evolved else _rounds(history),
        *(f"![{path.stem.capitalize()}]({Path(os.path.relpath(path, TARGET)).as_posix()})" for path in curves),
        "## Where they win and lose",
        _compared(weights, results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made(facts: dict[str, Any]) -> str:
    config, cost = facts["config"], facts["cost"]
    trained = ", ".join(
        f"{name} ({of['env_steps']:,} env steps a lifetime{_settings(facts, name)})"
        for name, of in facts["environments"].items()
    )
    seed = facts["root_seed"] if "root_seed" in facts else facts["seed"]  # as version 1 called it
    evolved = cost["generations"] > 0
    generations = f"{cost['generations']} generations, " if evolved else ""
    fitness = f" Fitness: {config['fitness']}." if evolved else ""
    lines = [
        f"- Trained on: {trained}.{fitness} Root seed {seed}.",
        f"- Study `{config['name']}`: {_evolution(config) if evolved else _imitation(facts['identity']['imitation'])}.",
        f"- Started from: {_ancestry(facts)}.",
        f"- Cost: {generations}{cost['lifetimes']:,} lifetimes, {cost['env_steps']:,} env steps, "
        f"{cost['seconds'] / 60:.0f} minutes on {cost['device']}.",
        f"- Code: revision `{facts['provenance']['revision']}`, jax {facts['provenance']['packages']['jax']}, "
        f"evosax {facts['provenance']['packages']['evosax']}.",
    ]
    return "\n".join(lines)


def _evolution(config: dict[str, Any]) -> str:
    return (
        f"{config['strategy']}, population {config['population']}, σ {config['sigma']} × {config['sigma_decay']} a "
        f"generation, learning rate {config['learning_rate']} × {config['learning_rate_decay']}, b1 {config['b1']}, "
        f"rollouts {config['rollouts']}"
    )


def _imitation(facts: dict[str, Any]) -> str:
    teachers = sorted({teacher["optimizer"] for teacher in facts["teachers"].values()})
    return (
        f"imitation of {', '.join(f'`{each}`' for each in teachers)} in {facts['rounds']} rounds of {facts['batches']} "
        "batches, no evolution"
    )


def _ancestry(facts: dict[str, Any]) -> str:
    """The weights that came before, eldest first, with what they cost."""
    if not facts["parent"]:
        return "the optimizer's initial θ"
    return ", then ".join(
        f"`{one['name']}` (hash `{one['hash'][:12]}`; trained on {', '.join(one['environments'])}, "
        f"{one['cost']['lifetimes']:,} lifetimes, {one['cost']['env_steps']:,} env steps)"
        for one in facts["ancestors"]
    )


def _settings(facts: dict[str, Any], environment: str) -> str:
    identity = facts["identity"]["environments"][environment]
    settings = identity.get("settings") or identity["ppo"]  # as version 1 called them
    layers = "×".join(str(units) for units in settings["hidden"])
    return f", {settings['num_envs']} environments, hidden layers {layers}"


def _history(history: pd.DataFrame) -> str:
    evaluated = [column for column in history if column.startswith(("return.", f"{BASELINE}."))]
    shown = history.dropna(subset=evaluated) if evaluated else history.iloc[[0, len(history) // 2, -1]]
    return _rows(shown, {"generation": "generation", "fitness_mean": "fitness", **{name: name for name in evaluated}})


def _rounds(history: pd.DataFrame) -> str:
    """The end of each round of an imitation, where θ is evaluated."""
    returns = [column for column in history if column.startswith(("return.", "teacher."))]
    names = {"round": "round", "batch": "batches", "held_out_loss": "held-out loss", "of_teacher": "of teacher"}
    return _rows(history.dropna(subset=returns), {**names, **{name: name for name in returns}})


def _rows(table: pd.DataFrame, columns: dict[str, str]) -> str:
    """These columns, under their headings."""
    rows = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    rows += ["| " + " | ".join(f"{row[name]:.4g}" for name in columns) + " |" for _, row in table.iterrows()]
    return "\n".join(rows)


def _compared(weights: Weights, results: list[Path]) -> str:
    """Final returns of runs with these weights beside tuned Adam's in the same folder, environment and length."""
    facts, references = weights.metadata, load_baseline_returns()
    trained = {name for one in (facts, *facts.get("ancestors", ())) for name in one["environments"]}
    lines: list[str] = []
    for folder in results:
        runs = load_runs(folder)
        own = runs.experiments[runs.experiments["theta"] == weights.hash[:12]]
        means = runs.scores.groupby("experiment")["final_return"].agg(["mean", "count"])
        for _, experiment in own.iterrows():
            same = runs.experiments[PAIRED].eq(experiment[PAIRED], axis="columns")
            others = runs.experiments[same.all(axis=1) & (runs.experiments["optimizer"] == BASELINE)]
            tuned = others[others["hyperparameter_origin"] == "tuned"]["experiment"]
            baseline = f"{means.loc[tuned.iloc[0], 'mean']:.4g}" if len(tuned) else "–"
            known = references.get(experiment["environment"])
            random = f"{known.random.final_return.mean:.4g}" if known and known.random else "–"
            place = "trained on" if experiment["environment"] in trained else "not trained on"
            own_mean = means.loc[experiment["experiment"]]
            lines.append(
                f"| {experiment['environment']} | {place} | {experiment['env_steps']:,} | {own_mean['count']:.0f} | "
                f"{own_mean['mean']:.4g} | {baseline} | {random} |"
            )
    if not lines:
        raise UserError(f"no run with the weights {weights.hash[:12]} in {', '.join(map(str, results)) or 'no folder'}")
    head = "| environment | | env steps | seeds | final return | tuned Adam, same seeds | random |"
    return "\n".join([head, "|" + "---|" * 7, *sorted(lines)])


def keep(evolution: Path) -> None:
    """Put where evolutions are published what continues this one: its last checkpoint, and θ of its imitation."""
    newest = max(evolution.glob("checkpoint-*.safetensors"), default=evolution / "latest.safetensors")
    imitated = evolution.with_name(f"{evolution.name}{STAGE}")
    wanted = [newest, evolution / HISTORY, evolution / IMITATION]
    wanted += [imitated / IMITATION, imitated / "latest.safetensors"]
    for path in wanted:
        target = EVOLUTIONS / path.parent.name / path.name
        if path.exists() and path.resolve() != target.resolve():  # it may be what was published before
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for old in (EVOLUTIONS / evolution.name).glob("checkpoint-*.safetensors"):
        if old.name != newest.name:
            old.unlink()


def draw(evolution: str) -> Iterator[Path]:
    """Training curves of a published evolution, and of its imitation where there is one."""
    for name, table, figure in (
        (f"{evolution}{STAGE}", IMITATION, imitation_figure),
        (evolution, IMITATION, imitation_figure),
        (evolution, HISTORY, history_figure),
    ):
        history = EVOLUTIONS / name / table
        if history.exists():
            yield from save(figure(pd.read_csv(history), name), history.parent / "figures" / history.stem)


@click.command()
@click.argument("evolution", type=click.Path(exists=True, path_type=Path))
@click.option("--as", "name", required=True, help="Name under which the weights ship.")
@click.option(
    "--results", multiple=True, type=click.Path(exists=True, path_type=Path), help="Runs to compare; repeatable."
)
@click.option("--note", default="", help="A sentence for the card.")
def main(evolution: Path, name: str, results: tuple[Path, ...], note: str) -> None:
    """Publish EVOLUTION, a folder <results>/meta/<name>. Without --results only the weights are put in place."""
    table = next(path for path in (evolution / HISTORY, evolution / IMITATION) if path.exists())
    weights, history = load_weights(evolution / "latest.safetensors"), pd.read_csv(table)
    TARGET.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(evolution / "latest.safetensors", TARGET / f"{name}.safetensors")
    shutil.copyfile(table, TARGET / f"{name}.history.csv")
    keep(evolution)
    curves = list(draw(evolution.name))
    if results:
        (TARGET / f"{name}.md").write_text(card(name, weights, history, curves, list(results), note), encoding="utf-8")


if __name__ == "__main__":
    main()
