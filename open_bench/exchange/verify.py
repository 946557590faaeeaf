"""Running a random sample of stored seeds again, and whether the numbers agree.

**On the same kind of machine** (``provenance.same_kind``) every number must be the same bit for bit: scores and curve.

**Elsewhere** rounding differs, and a lifetime amplifies it, so a seed's return is another draw from the experiment's
distribution. A seed then agrees *within tolerance* when its metrics are equal to ``TOLERANCE``, and else *in
distribution*: the difference between the stored and the new return is compared with the spread of the experiment's
other stored seeds by Student's t-test (two draws differ by √2 standard deviations), at ``LEVEL`` for the whole sample
(Bonferroni). A spread below ``LEAST_SPREAD`` of their largest return counts as that much. A return that is missing here
or there (diverged, or no episode ended) agrees when it is missing in another stored seed and not in all. Fewer than
``LEAST_SEEDS`` other seeds cannot say anything.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import pandas as pd

from open_bench.errors import UserError
from open_bench.evaluation.schema import METRICS, Table
from open_bench.events import Finished, Started, Watcher, silent
from open_bench.experiments.estimate import announce, check_memory
from open_bench.experiments.execute import SeedsOf, diagnosis_rows, rows, run_group, stream, work_of
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.provenance import provenance, same_kind
from open_bench.experiments.rebuild import rebuild
from open_bench.experiments.store import Damaged, Store, Stored

TOLERANCE = 1e-3  # relative, of metrics
LEVEL = 0.01  # chance that a sound sample is said to disagree
LEAST_SPREAD = 0.02
LEAST_SEEDS = 3
BITWISE, TOLERABLE, DISTRIBUTION, UNKNOWN, DISAGREES = "bitwise", "tolerance", "distribution", "unknown", "disagrees"


@dataclasses.dataclass(frozen=True)
class Verification:
    """What running seeds again has shown.

    Attributes:
        rows: one a seed: experiment, environment, optimizer, seed, ``stored`` and ``again`` (final returns), agreement:
            "bitwise", "tolerance", "distribution", "unknown" (nothing can be said) or "disagrees".
        root_seed: the sample's; the same gives the same sample.
        skipped: experiments whose seeds were drawn and cannot be run again here, and why; others took their place.
        damaged: what the digests or the schema say is not what was written.
    """

    rows: pd.DataFrame
    root_seed: int
    skipped: Mapping[str, str]
    damaged: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing disagrees and nothing is damaged."""
        return not self.damaged and not (self.rows["agreement"] == DISAGREES).any()

    @property
    def conclusive(self) -> int:
        """Of how many seeds something could be said."""
        return int((self.rows["agreement"] != UNKNOWN).sum())


def verify(
    store: Store, num_seeds: int, devices: Sequence[jax.Device], *, root_seed: int | None = None,
    own_code: bool = False, watcher: Watcher = silent,
) -> Verification:  # fmt: skip
    """Run a sample of the stored seeds again.

    Args:
        store: where they lie; nothing is written to it.
        num_seeds: how many of all experiments' seeds; all, where there are fewer.
        devices: where to run.
        root_seed: of the sample; None: another one each time.
        own_code: run optimizers, algorithms and environments from outside open-bench too.
        watcher: of the events.

    Raises:
        UserError: nothing is stored, or nothing of it can be run again.
    """
    store.check_there()
    if num_seeds < 1:
        raise UserError(f"verify {num_seeds}: ask for at least one seed")
    root_seed = int(np.random.SeedSequence().generate_state(1)[0]) if root_seed is None else root_seed
    sound, damaged = _read(store)
    sample, experiments, skipped = _sample(sound, num_seeds, root_seed, own_code, devices)
    if not sample:
        reasons = [*damaged, *(f"{name}: {reason}" for name, reason in skipped.items())]
        raise UserError(f"{store.results}: nothing can be run again: {'; '.join(reasons[:3]) or 'no seed is stored'}")
    parts = [(experiments[name], len(seeds)) for name, seeds in sample.items()]
    ahead = announce(parts, devices)
    jobs = [SeedsOf(each, count, store, diagnose=_diagnosed(sound[each.name])) for each, count in parts]
    found: list[_Again] = []
    with stream(watcher):
        watcher(Started("verify", tuple(map(work_of, jobs)), seconds=ahead.seconds))
        for job in jobs:
            found += _run(job, sample[job.name], sound[job.name], devices, watcher)
            watcher(Finished(work_of(job), job.lifetimes))
    level = LEVEL / (len(METRICS) * len(found))
    table = pd.DataFrame([each.row(level) for each in found])
    return Verification(table, root_seed, skipped, tuple(damaged))


def _read(store: Store) -> tuple[dict[str, Stored], list[str]]:
    """What can be read, by name, and what is damaged."""
    found, damaged = {}, []
    for name in store.names():
        try:
            found[name] = store.read(name)
            damaged += found[name].damaged
        except Damaged as problem:
            damaged.append(str(problem))
    return {name: stored for name, stored in found.items() if stored.shards}, damaged


def _sample(
    sound: Mapping[str, Stored], num_seeds: int, root_seed: int, own_code: bool, devices: Sequence[jax.Device]
) -> tuple[dict[str, list[int]], dict[str, Experiment], dict[str, str]]:
    """So many of the stored seeds that can be run again, by experiment, each as likely as any other; their experiments,
    by name; and why others that were drawn cannot be run again.

    An experiment is made again when a seed of it is drawn, so that a large folder takes no longer than a small one.
    """
    stored = [(name, int(seed)) for name in sound for shard in sound[name].shards for seed in shard.scores["seed"]]
    stored.sort()
    experiments: dict[str, Experiment] = {}
    skipped: dict[str, str] = {}
    drawn: list[tuple[str, int]] = []
    for name, seed in (stored[index] for index in np.random.default_rng(root_seed).permutation(len(stored))):
        if len(drawn) == num_seeds:
            break
        if name not in experiments and name not in skipped:
            try:
                experiment = rebuild(sound[name].content, own_code)
                check_memory(experiment, devices, 1)
                experiments[name] = experiment
            except UserError as problem:
                skipped[name] = str(problem)
        if name in experiments:
            drawn.append((name, seed))
    sample: dict[str, list[int]] = {}
    for name, seed in sorted(drawn):
        sample.setdefault(name, []).append(seed)
    return sample, experiments, dict(sorted(skipped.items()))


@dataclasses.dataclass(frozen=True)
class _Again:
    """One seed, as it is stored and as it came out now; both have the columns of scores."""

    experiment: Experiment
    stored: pd.Series
    again: pd.Series
    same_points: bool  # its curve, and its diagnosis where one is stored
    others: pd.DataFrame  # scores of the experiment's other stored seeds
    same_kind: bool  # of machine

    def row(self, level: float) -> dict[str, object]:
        task, metric = self.experiment.task, "final_return"
        return {"experiment": self.experiment.name, "environment": task.name, "optimizer": self.experiment.label,
                "seed": int(self.stored["seed"]), "stored": self.stored[metric], "again": self.again[metric],
                "agreement": self.agreement(level)}  # fmt: skip

    def agreement(self, level: float) -> str:
        """``level``: of each test of a metric."""
        columns = [name for name in self.stored.index if name in self.again.index]
        stored, again = (frame[columns].to_numpy(float) for frame in (self.stored, self.again))
        if self.same_points and np.array_equal(stored, again, equal_nan=True):
            return BITWISE
        if self.same_kind or self.stored["env_steps"] != self.again["env_steps"]:
            return DISAGREES
        if np.allclose(stored, again, TOLERANCE, 0.0, equal_nan=True):
            return TOLERABLE
        verdicts = [in_distribution(self.stored[m], self.again[m], self.others[m].to_numpy(), level) for m in METRICS]
        return DISAGREES if DISAGREES in verdicts else UNKNOWN if UNKNOWN in verdicts else DISTRIBUTION


def in_distribution(stored: float, again: float, others: np.ndarray, level: float) -> str:
    """Whether two returns of a seed differ as two draws of what the ``others`` (any number,) are draws of.

    The module's docstring has the rule. Returns one of "distribution", "disagrees" and "unknown".
    """
    from scipy import stats

    missing = np.isnan(others)
    if len(others) < LEAST_SEEDS:
        return UNKNOWN
    if math.isnan(stored) or math.isnan(again):
        both = math.isnan(stored) and math.isnan(again)
        return DISTRIBUTION if both or (missing.any() and not missing.all()) else DISAGREES
    known = others[~missing]
    if len(known) < LEAST_SEEDS:
        return UNKNOWN
    spread = max(known.std(ddof=1), LEAST_SPREAD * np.abs(known).max(), np.finfo(float).tiny)
    score = abs(again - stored) / (math.sqrt(2) * spread) if again != stored else 0.0
    return DISTRIBUTION if 2 * stats.t.sf(score, len(known) - 1) >= level else DISAGREES


def _diagnosed(stored: Stored) -> bool:
    return any(shard.diagnosis is not None for shard in stored.shards)


def _run(
    job: SeedsOf, seeds: Sequence[int], stored: Stored, devices: Sequence[jax.Device], watcher: Watcher
) -> Iterator[_Again]:
    """Each of some seeds of an experiment run again, beside what is stored of it."""
    (group,) = job.groups(seeds)
    written = pd.concat([pd.DataFrame(shard.scores) for shard in stored.shards], ignore_index=True)
    for _, some, batch in run_group(group, work_of(job), job.experiment.vmap_size, devices, watcher):
        scores, curves = rows(group.lifetime, some, batch)
        diagnosis = diagnosis_rows(group.lifetime, some, batch)
        for _, again in scores.iterrows():
            seed = int(again["seed"])
            shard = next(each for each in stored.shards if (each.scores["seed"] == seed).any())
            (_, before), *_ = written[written["seed"] == seed].iterrows()
            same = _same(shard.curves, curves, seed) and _same(shard.diagnosis, diagnosis, seed)
            others = written[written["seed"] != seed]
            yield _Again(job.experiment, before, again, same, others, same_kind(shard.provenance, provenance()))


def _same(stored: Table | None, again: Table | None, seed: int) -> bool:
    """Whether a seed's rows are the same bit for bit; columns that only one side has are left out."""
    if stored is None or again is None:
        return stored is None
    columns = [[np.asarray(x[name], float)[np.asarray(x["seed"]) == seed] for x in (stored, again)]
               for name in stored if name in again]  # fmt: skip
    return all(np.array_equal(before, after, equal_nan=True) for before, after in columns)
