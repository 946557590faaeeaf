"""Nonsense that the public reading functions are given: each must read it, refuse it in words, or warn and skip it."""

import contextlib
import json
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tomli_w
from exchanged import chosen, invented, redigest, renamed, searched

import open_bench
from open_bench.api import prepare
from open_bench.config import Execution, load_study, shipped
from open_bench.environments.registry import load_environment
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.exchange.archive import write_archive
from open_bench.experiments.agents import saved_agents
from open_bench.experiments.rebuild import rebuild
from open_bench.experiments.store import Damaged, Store
from open_bench.generalization.study import load_generalization, make_points
from open_bench.meta_training.spec import load_meta
from open_bench.optimizers import names, registry
from open_bench.optimizers.resolve import resolve
from open_bench.reports import contents as report_contents
from open_bench.reports.page import render
from open_bench.training.task import make_task
from open_bench.weights import library
from open_bench.weights.format import save_weights
from tooling.campaigns import ROOT
from tooling.campaigns.mutations import (
    ODD_TOML,
    spoiled_bytes,
    spoiled_json,
    spoiled_table,
    spoiled_text,
    spoiled_value,
)


class Names:
    """Names of optimizers, made of the grammar's parts with wrong ones among them, a third of them misspelt."""

    heads = ("optax.adabelief", "optax.contrib.muon", "optax.adma", "optax", "math:pi", "json:dumps", "no.such:thing",
             "open_bench.optimizers.template:SPEC", "open_bench.optimizers.template:nothing", "")  # fmt: skip
    values = ("1e-3", "0.5", "1", "0", "-1", "True", "none", "nan", "inf", "1e999", "9" * 400, "fast", "", "[1,2]",
              "'a'", "1e-3+dpo", "{1e-3,1e-2}", "{}", "{", "tuned", "one_setting")  # fmt: skip
    losses = ("+ppo", "+dpo", "+lpo", "+nothing", "+")
    sources = ("@zero", "@init", "@nothing", "@no/file.npy", "@", "@~nobody", "@/", "@a\0b", "@" + "x" * 5000)

    def __init__(self, folder: Path):
        known = registry.known()
        self._heads = [*known, *self.heads]
        self._keys = [*sorted({key for spec in known.values() for key in spec.hyperparameters}), "track", "lr", "", "é"]
        self._task = make_task(load_environment("cartpole"), budget="quick")

    def name(self, dice: Random) -> str:
        """A name."""
        head = dice.choice(self._heads)
        spec = registry.known().get(head)
        keys = list(spec.hyperparameters) if spec is not None and dice.random() < 0.8 else self._keys
        values = self.values if dice.random() < 0.5 else ("1e-3", "0.5", "0.9")
        given = [f"{dice.choice(keys or self._keys)}={dice.choice(values)}" for _ in range(dice.choice((0, 1, 1, 2)))]
        name = head + (":" + ",".join(given) if given else "")
        for odd in (self.losses, self.sources):
            name += dice.choice(odd) if dice.random() < 0.3 else ""
        return spoiled_text(name, dice) if dice.random() < 0.3 else name

    def __call__(self, dice: Random) -> None:
        for each in names.expand(self.name(dice))[:2]:
            resolve(each, dice.choice((None, self._task)))


class Tomls:
    """Files of studies and environments: those that ship, with other values, keys or bytes."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files = [(kind, path) for kind in ("environments", "studies", "meta", "generalize")
                       for path in shipped(kind).values()]  # fmt: skip
        shutil.copytree(ROOT / "configs" / "mazes", folder / "mazes", dirs_exist_ok=True)

    def __call__(self, dice: Random) -> None:
        kind, path = dice.choice(self._files)
        if dice.random() < 0.3:
            content = spoiled_bytes(path.read_bytes(), dice)
        else:
            table = {**tomllib.loads(path.read_text()), "name": "mine"}  # a shipped name must not mean something else
            content = tomli_w.dumps(spoiled_value(table, dice, ODD_TOML)).encode()
        file = self._folder / "x.toml"
        file.write_bytes(content)
        getattr(self, f"_{kind}")(str(file))

    def _environments(self, file: str) -> None:
        config = load_environment(file)
        for budget in config.budgets:
            make_task(config, budget=budget)

    def _studies(self, file: str) -> None:
        prepare(load_study(file), execution=Execution(self._folder / "results", devices=1))

    def _meta(self, file: str) -> None:
        load_meta(file)

    def _generalize(self, file: str) -> None:
        make_points(load_generalization(file))


class Weights:
    """Files of every format that weights are read from, spoiled."""

    def __init__(self, folder: Path):
        import jax
        from flax import serialization

        from open_bench.optimizers.learned import celo2

        self._folder = folder
        known = registry.known()
        theta = {part: dict(value) for part, value in resolve("open@zero").weights.theta.items()}  # type: ignore[union-attr]
        save_weights(folder / "open.safetensors", theta, {"optimizer": "open", "environments": {"cartpole": {}}})
        np.save(folder / "open.npy", np.zeros(1211, np.float32))
        np.savez(folder / "lpo.npz", kernel_0=np.ones((8, 5), np.float32), kernel_1=np.ones((5, 1), np.float32))
        arrays = jax.tree.map(np.asarray, celo2.init_theta(jax.random.key(0)))
        (folder / "celo2.state").write_bytes(serialization.msgpack_serialize(arrays))
        shutil.copytree(ROOT / "tests" / "golden" / "velo_small_checkpoint", folder / "velo")
        specs = {
            "open.safetensors": "open",
            "open.npy": "open",
            "lpo.npz": "lpo",
            "celo2.state": "celo2",
            "velo": "velo",
        }
        self._files = [(folder / name, known[spec]) for name, spec in specs.items()]

    def __call__(self, dice: Random) -> None:
        whole, spec = dice.choice(self._files)
        path = self._folder / f"x{whole.suffix}"
        with contextlib.ExitStack() as cleanup:
            if whole.is_dir():
                shutil.copytree(whole, path)
                cleanup.callback(shutil.rmtree, path)
                part = path / dice.choice(("params", "params", "config.gin"))
                part.write_bytes(spoiled_bytes(part.read_bytes(), dice, dice.choice((400, None))))
            else:
                path.write_bytes(spoiled_bytes(whole.read_bytes(), dice, dice.choice((400, 400, None))))
            try:
                library.inspect(path)
            finally:
                library.import_file(path, spec)


def _spoil(path: Path, dice: Random) -> None:
    """Spoil a file of a results folder in a way that its kind makes interesting."""
    spoil = {".json": spoiled_json, ".csv": spoiled_table}.get(path.suffix, spoiled_bytes)
    path.write_bytes(spoil(path.read_bytes(), dice))


_TABLES = {
    "generalization/tiny/points.csv": "axis,point,x,optimizer,mean,score,score_low,score_high,distribution\n"
    "width,cartpole,8,adam,1.5,1,0.9,1.1,in\nwidth,cartpole[hidden=4],4,adam,1.5,1,0.9,1.1,out\n",
    "generalization/tiny/summary.csv": "optimizer,in_score,out_score,gap,worst_axis,worst_point\nadam,1,1,0,width,4\n",
    "generalization/tiny/generalization.md": "# tiny\n\nScores: Adam is 1.\n\n## Notes\n\n- one\n",
    "meta/mine/history.csv": "generation,fitness_mean,fitness_std,fitness_best,sigma,lifetimes,env_steps,seconds,"
    "return.cartpole\n1,2,1,3,0.1,4,1000,1.5,20\n2,3,1,4,0.1,8,2000,3.0,\n",
}


def _runs(folder: Path) -> Path:
    """A results folder with all that there can be: runs with agents and diagnoses, trials, studies, an evolution."""
    invented(folder, chosen(), [0, 1, 2], size=2, beside=True)
    searched(folder, [(0, 0), (0, 1), (1, 0), (2, 1)])
    experiments = [path.name for path in folder.glob("experiments/*--*")]
    (folder / "study.json").write_text(json.dumps({"study": "mine", "experiments": experiments, "joined": True}))
    for name, text in _TABLES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Results:
    """Results folders in which files are spoiled, and the digests and names then made to fit."""

    def __init__(self, folder: Path):
        self._whole = _runs(folder / "whole")
        self._folder = folder
        self._returns = load_baseline_returns()

    def __call__(self, dice: Random) -> None:
        with _temporary(self._folder) as place:
            there = Path(shutil.copytree(self._whole, place / "runs"))
            files = sorted(path for path in there.rglob("*.*") if path.is_file() and not path.name.startswith("."))
            for path in dice.sample(files, dice.choice((1, 1, 2))):
                _spoil(path, dice)
            if dice.random() < 0.8:
                _make_fit(there)
            self._read(there)
            if dice.random() < 0.02:
                open_bench.leaderboard(there)

    def _read(self, there: Path) -> None:
        store = Store(there)
        for name in store.names():
            with contextlib.suppress(Damaged, UserError):
                rebuild(store.read(name).content)
            with contextlib.suppress(UserError):
                open_bench.load_agent(store.experiments / name)
            saved_agents(store.experiments / name)
        render(report_contents.read(there), self._returns, resamples=20)


def _make_fit(there: Path) -> None:
    """Whoever forges a folder recomputes its digests and names."""
    for shard in sorted(there.glob("experiments/*/shard-*")):
        with contextlib.suppress(Exception):
            redigest(shard)
    for experiment in sorted(there.glob("experiments/*--*")):
        with contextlib.suppress(Exception):
            renamed(experiment, lambda content: None)


class Archives:
    """Archives with spoiled bytes, or with spoiled members and a manifest that fits them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._whole = open_bench.export(folder / "whole.zip", _runs(folder / "whole"))

    def __call__(self, dice: Random) -> None:
        with _temporary(self._folder) as place:
            sent, there = place / "sent.zip", place / "there"
            if dice.random() < 0.4:
                sent.write_bytes(spoiled_bytes(self._whole.read_bytes(), dice, dice.choice((400, None))))
            else:
                write_archive(sent, *self._forged(dice))
            try:
                open_bench.import_results(sent, results=there)
            except UserError:
                kept = [path for path in there.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
                assert not kept, f"refused, and yet there is {kept}"
                raise
            assert len(open_bench.load_runs(there).scores)

    def _forged(self, dice: Random) -> tuple[dict[str, Path | bytes], dict[str, Any]]:
        import zipfile

        with zipfile.ZipFile(self._whole) as archive:
            members: dict[str, Path | bytes] = {name: archive.read(name) for name in archive.namelist()}
        facts = json.loads(members.pop("open-bench.json"))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            for name in dice.sample(sorted(members), dice.choice((1, 1, 2))):
                if dice.random() < 0.15:
                    other = dice.choice(("../x", "/x", "experiments/x", name.upper(), spoiled_text(name, dice)))
                    members[other.encode(errors="ignore").decode()[:200]] = members.pop(name)
                    continue
                file = Path(place) / f"x{Path(name).suffix}"
                file.write_bytes(members[name])  # type: ignore[arg-type]
                _spoil(file, dice)
                members[name] = file.read_bytes()
        members = _refit(members)
        facts.pop("files")
        return members, facts if dice.random() < 0.9 else {"format": 2, **facts}


def _refit(members: dict[str, Path | bytes]) -> dict[str, Path | bytes]:
    """The members' digests in the shards' provenances made to fit."""
    import hashlib

    for name in [name for name in members if name.endswith("/provenance.json") and name.startswith("experiments/")]:
        with contextlib.suppress(Exception):
            facts = json.loads(members[name])  # type: ignore[arg-type]
            folder = name.rpartition("/")[0]
            facts["files"] = {each: hashlib.sha256(members[f"{folder}/{each}"]).hexdigest()  # type: ignore[arg-type]
                              for each in facts["files"]}  # fmt: skip
            members[name] = json.dumps(facts).encode()
    return members


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        yield Path(place)
