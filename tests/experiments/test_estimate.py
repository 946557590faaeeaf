"""What lies ahead: counted exactly, guessed roughly, announced when it is long, refused when it does not fit."""

import dataclasses
import warnings
from pathlib import Path

import jax
import pytest
from tiny import STEPS, experiments, random_policy, train

from open_bench.errors import UserError
from open_bench.experiments import estimate as module
from open_bench.experiments.estimate import announce, estimate, estimate_missing, lifetime_seconds
from open_bench.experiments.store import Store
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task

CPU = jax.devices()


@pytest.mark.slow
def test_what_is_stored_is_not_ahead(tmp_path: Path) -> None:
    store = train(tmp_path, [random_policy()], num_seeds=3)
    ahead = estimate([random_policy(), *experiments()], 5, store, CPU)
    assert estimate([random_policy()], 5, store, CPU).lifetimes == 2
    assert estimate(experiments(), 5, store, CPU).lifetimes == 5
    assert ahead.lifetimes == 7
    assert ahead.env_steps == 7 * STEPS
    nothing = estimate([random_policy()], 2, store, CPU)
    assert (nothing.lifetimes, nothing.env_steps, nothing.seconds) == (0, 0, 0.0)


def test_more_devices_and_fewer_seeds_take_less(tmp_path: Path) -> None:
    store, chosen = Store(tmp_path), experiments(steps=10**7)
    seconds = lambda seeds, devices: estimate(chosen, seeds, store, CPU[:devices]).seconds or 0.0
    assert seconds(8, 4) < seconds(8, 1)
    assert seconds(4, 1) < seconds(8, 1)
    assert seconds(1, 4) == pytest.approx(seconds(1, 1))


def test_learned_optimizers_and_slow_environments_take_longer() -> None:
    task = make_task("breakout")
    plain = lifetime_seconds(task, False, CPU) or 0.0
    assert 1 < plain < 600
    assert (lifetime_seconds(task, True, CPU) or 0.0) > plain
    slow = make_task("ant", steps=task.lifetime_steps)
    assert (lifetime_seconds(slow, False, CPU) or 0.0) > 2 * plain


def test_nothing_is_guessed_of_accelerators(tmp_path: Path) -> None:
    class Accelerator:
        platform = "gpu"

    chosen, store = [random_policy(), *experiments()], Store(tmp_path)
    assert estimate(chosen, 3, store, [Accelerator()]).seconds is None  # type: ignore[list-item]
    alone = [estimate([each], 3, store, CPU).seconds or 0.0 for each in chosen]
    assert estimate(chosen, 3, store, CPU).seconds == pytest.approx(sum(alone))
    assert min(alone) > 0


def test_long_work_is_announced() -> None:
    (long,) = experiments(steps=10**9)
    with pytest.warns(
        UserWarning, match=r"6 lifetimes with 6,\d{3},\d{3},\d{3} env steps are ahead: about \d+\.\d h on thi"
    ):
        ahead = announce([(long, 6)], CPU)
    assert ahead.lifetimes == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        announce([(experiments()[0], 3), (long, 0)], CPU)


def test_experiments_with_the_same_numbers_are_made_once() -> None:
    """Whichever of them more is stored of: the other gets copies."""
    (one,) = experiments()
    other = dataclasses.replace(one, optimizer=resolve("adam:track=tuned", one.task))
    assert other.name != one.name
    assert other.computation == one.computation
    for missing in ((4, 8), (8, 4)):
        found = estimate_missing([(one, missing[0]), (other, missing[1])], CPU)
        assert (found.lifetimes, found.env_steps) == (4, 4 * STEPS)


def test_what_does_not_fit_in_memory_is_refused() -> None:
    (huge,) = experiments(changes={"num_envs": 2**24, "num_steps": 2**10, "num_minibatches": 1}, steps=2**34)
    with pytest.raises(
        UserError, match=r"lifetimes on 3 devices, 1 on each, need about .* GiB, and .*: lower --devices"
    ):
        announce([(huge, 3)], CPU)
    announce([(huge, 0)], CPU)  # what is stored needs none
    (broad,) = experiments(changes={"hidden": (10**8, 10**8)})
    with pytest.raises(UserError, match=r"need about .* GiB.*the sizes of networks"):
        announce([(broad, 3)], CPU)
    wide = dataclasses.replace(experiments()[0], vmap_size=10**6)
    with pytest.raises(UserError, match=r"1000000 on each, need .*lower --devices or --vmap-size"):
        announce([(wide, 10**6)], CPU)


def test_devices_that_stay_idle_need_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = experiments()
    pages = 3 * one.task.lifetime_bytes // 4096  # of four devices' lifetimes three fit
    monkeypatch.setattr(module.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.__getitem__)
    announce([(one, 2)], CPU)
    with pytest.raises(UserError, match="on 4 devices"):
        announce([(one, 8)], CPU)


def test_budgets_that_are_too_short_to_be_scored_are_warned_of() -> None:
    """An episode of Freeway lasts 2,500 steps in every copy."""
    (short,) = experiments(environments=("freeway",), steps=64 * 2500 * 2, changes={"num_envs": 64, "num_steps": 100})
    with pytest.warns(UserWarning, match=r"each of 64 copies finishes 2 episodes at most"):
        announce([(short, 3)], CPU)
    assert module.ENOUGH_EPISODES == 3
