"""Work on a Ray cluster: the same numbers as at home, and nothing that is finished is lost with a worker.

Most of it runs on a stand-in for the few functions of Ray that are used, in this process; the rest on a cluster of
several nodes of Ray's own, on loopback, where Ray is installed.
"""

import dataclasses
import os
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from commands import OpenBench, check_refused, subprocess_of
from hypothesis import given
from hypothesis import strategies as st
from tiny import SETTINGS, STEPS, Log, experiments, random_policy, same, shards, tables, train

import open_bench
from open_bench.config import Execution
from open_bench.errors import UserError
from open_bench.events import Advanced, Compiled, Compiling, Ended, Event, Finished, Started, Waiting, Work, silent
from open_bench.experiments import remote
from open_bench.experiments.execute import Group, SeedsOf, execute, execute_jobs
from open_bench.experiments.experiment import Experiment
from open_bench.experiments.rebuild import rebuild
from open_bench.experiments.remote import (
    TRIES,
    Batch,
    check_portable,
    connect,
    content_of,
    devices_for,
    some_of,
    split,
    theta_of,
    thinned,
)
from open_bench.experiments.store import Store
from open_bench.optimizers.registry import register
from open_bench.optimizers.resolve import UNTUNED, resolve
from open_bench.optimizers.spec import OptimizerSpec
from open_bench.training.devices import RemoteDevice, start
from open_bench.tuning.trials import ROOT_SEED, Trials

WORKER = RemoteDevice("cpu", None)


def momentum(learning_rate: float = 1e-2) -> optax.GradientTransformation:
    """An optimizer that a module of the user's tells."""
    return optax.sgd(learning_rate, 0.9)


# --- a stand-in for Ray -----------------------------------------------------------------------------------------------


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception):
        super().__init__(f"traceback of {cause}")
        self.cause = cause


class Crashed(RayError):
    pass


class Stand(types.ModuleType):
    """Tasks run here, when they are looked at. ``dies(told)`` says whether the worker dies before it tells something,
    or, of None, when it has told everything."""

    def __init__(self, dies: Callable[[Any], bool] = lambda told: False, nodes: Sequence[dict[str, float]] = ()):
        super().__init__("ray")
        self.dies, self.begun, self.cancelled, self.options = dies, 0, 0, {}
        self.alive = list(nodes) or [{"CPU": 2.0}]
        self.exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=Crashed)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {kind: sum(node.get(kind, 0) for node in self.alive) for kind in ("CPU", "GPU")}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.alive]

    def remote(self, function: Callable[..., Any]) -> Any:
        def call(*arguments: Any) -> Any:
            self.begun += 1
            found = function(*arguments)
            return self._stream(found) if isinstance(found, Iterator) else found

        def options(**options: Any) -> Any:
            self.options = options
            return types.SimpleNamespace(remote=call)

        return types.SimpleNamespace(options=options)

    def _stream(self, told: Iterator[Any]) -> Iterator[Any]:
        try:
            for each in told:
                if self.dies(each):
                    yield Crashed("the node is gone")
                    return
                yield each
            if self.dies(None):
                yield Crashed("the node is gone")
        except Exception as error:
            yield RayTaskError(error)

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]

    def get(self, value: Any, timeout: float | None = None) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled += 1


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stand]:
    def make(*arguments: Any, **options: Any) -> Stand:
        monkeypatch.setitem(sys.modules, "ray", made := Stand(*arguments, **options))
        return made

    return make


def spread(folder: Path, chosen: Any, watcher: Any = silent, workers: int = 2, least_seconds: float = 0.0) -> Store:
    """Three seeds of experiments on workers, one a task where there is room."""
    store = Store(folder)
    jobs = [SeedsOf(each, 3, store) for each in chosen]
    remote.spread(jobs, [WORKER] * workers, watcher, title="away", least_seconds=least_seconds)
    return store


@pytest.fixture(scope="module")
def random() -> list[Experiment]:
    """What is compiled and made fastest."""
    return [random_policy()]


@pytest.fixture(scope="module")
def home(random: list[Experiment], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its tables by one process."""
    return tables(train(tmp_path_factory.mktemp("home"), random, num_seeds=3))


# --- results ----------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_one_process(stand: Any, random: Any, home: Any, tmp_path: Path) -> None:
    ray, log = stand(), Log()
    same(tables(spread(tmp_path, random, watcher=log)), home)
    assert ray.options == {"num_cpus": 1, "max_retries": 0, "num_returns": "streaming"}
    assert ray.begun == len(shards(tmp_path)) == 3
    kinds = [type(event) for event in log.events]
    assert (kinds[0], kinds[-1], kinds.count(Finished), log.events[-1]) == (Started, Ended, 1, Ended(True))
    assert log.updates == 3 * random[0].task.num_updates
    spread(tmp_path, random)
    assert ray.begun == 3  # all is there: nothing is sent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "open@zero"])
def test_an_experiment_that_is_short_is_one_task(name: str, stand: Any, tmp_path: Path) -> None:
    ray, chosen = stand(), experiments(name)
    away = Store(tmp_path / "away")
    execute(chosen, 2, away, [WORKER] * 2, save_agents=True, diagnose=True)
    assert ray.begun == 1
    here = train(tmp_path / "here", chosen, num_seeds=2, devices=1, save_agents=True, diagnose=True)
    same(tables(away), tables(here))
    for kind in ("agents.safetensors", "diagnosis.csv"):
        files = [sorted(store.results.rglob(kind)) for store in (away, here)]
        assert len(files[0]) == 2
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_a_lost_worker_loses_its_device_batch_alone(stand: Any, random: Any, home: Any, tmp_path: Path) -> None:
    """Two workers of the experiment's one task die, each in the lifetime after one that is finished."""
    seen: list[int] = []
    fatal = {1, 2}

    def dies(told: Any) -> bool:
        seen.extend(told.indices if isinstance(told, Batch) else [])
        died = isinstance(told, Advanced) and len(seen) in fatal
        fatal.discard(len(seen) if died else 0)
        return died

    stand(dies)
    same(tables(spread(tmp_path, random, least_seconds=1e3)), home)
    assert not fatal
    assert seen == [0, 1, 2]


def test_a_worker_that_dies_when_all_is_told_is_not_missed(stand: Any, random: Any, home: Any, tmp_path: Path) -> None:
    ray = stand(lambda told: told is None)
    same(tables(spread(tmp_path, random, least_seconds=1e3)), home)
    assert ray.begun == 1


def test_a_part_that_kills_its_workers_is_given_up(stand: Any, random: Any, tmp_path: Path) -> None:
    ray = stand(lambda told: isinstance(told, Advanced))
    log = Log()
    with pytest.raises(UserError, match=f"random: {TRIES} workers in a row were lost at it, the last with Crashed"):
        spread(tmp_path, random, watcher=log, least_seconds=1e3)
    assert (ray.begun, log.events[-1]) == (TRIES, Ended(False))
    with Store(tmp_path).lock(random[0]) as free:  # nothing is held
        assert free


def test_what_a_worker_refuses_is_said(stand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that lacks the user's module."""
    stand()
    file = tmp_path / "not_everywhere.py"
    file.write_text("import optax\n\ndef rule():\n    return optax.sgd(1e-2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget(event: Event) -> None:
        if isinstance(event, Started):
            file.unlink()
            del sys.modules["not_everywhere"]

    with pytest.raises(UserError, match=r"not_everywhere:rule.*, on a worker: .*cannot import not_everywhere"):
        spread(tmp_path, experiments("not_everywhere:rule"), watcher=forget)


def test_an_interrupt_stops_the_tasks_and_frees_the_jobs(stand: Any, random: Any, tmp_path: Path) -> None:
    ray = stand()

    def interrupt(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(tmp_path, random, watcher=interrupt)
    assert ray.cancelled > 0
    with Store(tmp_path).lock(random[0]) as free:
        assert free


def test_a_job_of_another_process_is_waited_for(stand: Any, random: Any, home: Any, tmp_path: Path) -> None:
    stand()
    held = Store(tmp_path).lock(random[0])
    held.__enter__()
    waited = []

    def watch(event: Event) -> None:
        if isinstance(event, Waiting):
            waited.append(event.parts)
            held.__exit__(None, None, None)

    same(tables(spread(tmp_path, random, watcher=watch)), home)
    assert waited == [1]


def trials(folder: Path) -> Trials:
    (each,) = experiments("sgd")
    optimizer = resolve("sgd", each.task, track=UNTUNED)
    return Trials(dataclasses.replace(each, optimizer=optimizer, root_seed=ROOT_SEED), 2, 2, folder)


@pytest.mark.slow
def test_trials_are_those_of_one_process(stand: Any, tmp_path: Path) -> None:
    stand()
    jobs, done = [trials(tmp_path / name) for name in ("home", "away")], []
    for job, devices in zip(jobs, (jax.devices()[:2], [WORKER] * 2), strict=True):
        execute_jobs([job], devices, title="tuning", when_done=done.append)
    assert done == jobs
    for one, other in zip(*(job.load() for job in jobs), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


# --- what travels -----------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 40), size=st.integers(1, 50), own=st.booleans())
def test_parts_are_the_whole(count: int, size: int, own: bool) -> None:
    values = np.arange(count, dtype=np.float32)
    group = Group(range(3, 3 + count), None, range(count), {"x": values} if own else None)  # type: ignore[arg-type]
    parts = list(split(group, size))
    assert [i for part in parts for i in part.indices] == list(group.indices)
    assert [i for part in parts for i in part.seeds] == list(group.seeds)
    assert all(1 <= len(part.indices) <= size for part in parts)
    if own:
        assert np.concatenate([part.own["x"] for part in parts]).tolist() == values.tolist()
    assert len(some_of(group, []).indices) == 0


@pytest.mark.parametrize("name", ["adam", "sgd:learning_rate=0.3", "open@zero", "lpo@zero", "optax.adabelief",
                                  f"{__name__}:momentum", "adam:track=published"])  # fmt: skip
def test_workers_make_the_same_experiment(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (each,) = experiments(name)
    check_portable(each)
    content, theta = content_of(each), theta_of(each)
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path))  # a node without weights
    again = rebuild(content, own_code=True, theta=theta)
    assert again.name == each.name
    assert jax.tree.map(np.asarray, again.inputs).keys() == each.inputs.keys()
    equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), again.inputs, each.inputs)
    assert all(jax.tree.leaves(equal))


def test_other_theta_is_another_experiment() -> None:
    (each,) = experiments("open@zero")
    theta = jax.tree.map(lambda leaf: leaf + 1, theta_of(each))
    with pytest.raises(UserError, match="it is another experiment here: theta is stored as"):
        rebuild(content_of(each), own_code=True, theta=theta)


def test_code_of_this_session_is_refused_before_anything_is_sent(stand: Any, tmp_path: Path) -> None:
    ray = stand()
    inner = lambda: optax.sgd(1e-2)
    register(OptimizerSpec("mine-alone", "registered here", lambda theta, length: optax.sgd(1e-2)))
    for optimizer in (inner, optax.sgd(1e-2), "mine-alone"):
        log = Log()
        with pytest.raises(UserError, match="in this session or script, which the workers of a cluster cannot import"):
            spread(tmp_path, experiments(optimizer), watcher=log)
        assert not log.events
    assert not ray.begun


# --- asking for it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"executor": "rai"}, r"unknown executor 'rai'\. Did you mean ray\? Known: ray"),
        ({"executor": 3}, "executor: 3 is neither None nor a Cluster nor ray"),
        ({"address": "here:1"}, "address here:1: it is a Ray cluster's, and goes with executor ray"),
    ],
)
def test_executors_are_known(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Execution(**fields)


def test_meta_training_has_no_use_for_it() -> None:
    with pytest.raises(UserError, match="executor ray is for train, compare, tune and generalize"):
        start(1, "ray")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--executor", "slurm"], "unknown executor 'slurm'"),
        (["--address", "10.0.0.1:6379"], "goes with executor ray"),
        (["--executor", "ray", "--coordinator", "a:1"], "two ways to use several hosts: take one"),
        (["--executor", "ray"], 'pip install ".[ray]" in a clone'),
    ],
)
def test_the_command_line_says_what_is_wrong(
    given: list[str], message: str, openbench: OpenBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # not installed
    results = tmp_path / "results"
    check_refused(openbench("train", "adam", "-e", "cartpole", *given, "--results", results), message, results)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_addresses_that_lead_nowhere(stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = stand()
    ray.is_initialized = lambda: False
    for address in ("10.0.0.1", "ray://10.0.0.1:10001", ":6379", "host:port"):
        with pytest.raises(UserError, match="expected HOST:PORT of the cluster's head"):
            connect(address)
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:\d+ .*: `ray start --head`"):
        connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"no Ray cluster answers at .*:99999"):
        connect("127.0.0.1:99999")


def test_workers_are_counted_by_what_a_task_takes(stand: Any) -> None:
    stand(nodes=[{"CPU": 4.0}, {"CPU": 3.0}, {}])
    found = devices_for(Execution(executor="ray", devices=2))
    assert [(each.platform, each.count) for each in found] == [("cpu", 2)] * 3  # type: ignore[union-attr]
    with pytest.raises(UserError, match="--devices 5: the nodes of this cluster have at most 4 CPUs"):
        connect(devices=5)
    with pytest.raises(UserError, match="--devices 0"):
        devices_for(Execution(executor="ray", devices=0))


def test_progress_is_told_less_often_and_none_of_it_is_lost() -> None:
    work = Work("a", "a", 10, 100, 2, 0, "seed")
    times = iter([0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 9.0, 9.0, 10.0])  # two looks at the clock where something is told
    made = [Advanced(work, count, 2, float(count), 0, 0.5) for count in (1, 2, 4, 8, 16, 32)]
    told = list(thinned(iter([Compiling(work), *made[:5], Compiled(work, 1.0), made[5]]), 2.0, lambda: next(times)))
    assert [type(each) for each in told] == [Compiling, Advanced, Advanced, Advanced, Compiled, Advanced]
    advanced = [each for each in told if isinstance(each, Advanced)]
    assert [each.updates for each in advanced] == [1, 6, 24, 32]
    assert [each.seconds for each in advanced] == [0.5, 1.0, 1.0, 0.5]
    assert [each.episode_return for each in advanced] == [1.0, 4.0, 16.0, 32.0]


# --- a cluster of several nodes ---------------------------------------------------------------------------------------


def installed() -> Any:
    """Ray, kept on loopback."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported
    return pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing and four nodes of one CPU."""
    ray = installed()
    from ray.cluster_utils import Cluster

    size = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    made.workers = [made.add_node(num_cpus=1, **size) for _ in range(4)]
    yield made
    ray.shutdown()
    made.shutdown()


STUDY: dict[str, Any] = {"optimizers": ["adam", "sgd", "lion", "rmsprop"], "environments": ["cartpole"], "num_seeds": 2,
                         "steps": 20 * STEPS, "settings": SETTINGS}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The study by one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    open_bench.compare(**STUDY, results=folder, devices=2)
    return tables(Store(folder))


@pytest.mark.slow
def test_nodes_die_and_nothing_changes(cluster: Any, undisturbed: Any, tmp_path: Path) -> None:
    """Two of four nodes are killed while they work."""
    seen: list[str] = []

    def kill(event: Event) -> None:
        seen.extend([event.work.label] if isinstance(event, Advanced) else [])
        if len(seen) in (2, 4) and isinstance(event, Advanced):
            cluster.remove_node(cluster.workers.pop(), allow_graceful=False)

    open_bench.compare(**STUDY, results=tmp_path, executor="ray", address=cluster.address, progress=kill)
    assert len(cluster.workers) == 2, seen
    same(tables(Store(tmp_path)), undisturbed)


@pytest.mark.slow
def test_the_driver_dies_and_what_was_finished_stays(cluster: Any, undisturbed: Any, tmp_path: Path) -> None:
    named = [word for name in STUDY["optimizers"] for word in ("-o", name)]
    few = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    process = subprocess_of(
        "compare", *named, "-e", "cartpole", "--num-seeds", 2, "--steps", STUDY["steps"], *few, "--results", tmp_path,
        "--executor", "ray", "--address", cluster.address, "--plain",
    )  # fmt: skip
    try:
        while not shards(tmp_path):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    open_bench.compare(**STUDY, results=tmp_path, executor="ray", address=cluster.address)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    same(tables(Store(tmp_path)), undisturbed)


@pytest.mark.slow
def test_what_listens_and_is_no_cluster_is_told_in_time() -> None:
    installed()
    told = pytest.raises(UserError, match=r"no Ray cluster answers at .* \(something else listens there\)")
    with socket.create_server(("127.0.0.1", 0)) as other, told:
        remote.reach(f"127.0.0.1:{other.getsockname()[1]}")
