"""``openbench meta-train`` killed at random moments, and in two processes: θ is bitwise what it would have been."""

import os
import random
import runpy
import shutil
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from open_bench.weights.format import save_weights

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tooling" / "kill_campaign.py"))
Campaign, disturb, differences, MOMENTS = (TOOL[name] for name in ("Campaign", "disturb", "differences", "MOMENTS"))
REQUEST = {"generations": 8, "updates": 150}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float]:
    """A finished evolution in one process, and the seconds to its first generation."""
    campaign = Campaign(tmp_path_factory.mktemp("undisturbed"), **REQUEST)
    startup = campaign.finish()
    # Otherwise all comparisons below would hold of a θ that never moved.
    assert np.abs(TOOL["_flat"](campaign.weights().theta)).max() > 0.05
    assert (campaign.history()["fitness_std"] > 0).sum() > 4
    return campaign, startup


@pytest.mark.slow
def test_killed_at_the_start_at_work_and_while_writing(undisturbed: tuple[Any, float], tmp_path: Path) -> None:
    """``python tooling/kill_campaign.py`` does this with a dozen kills."""
    one, startup = undisturbed
    other, dice = Campaign(tmp_path / "killed", **REQUEST), random.Random()
    killed = disturb(other, 1, dice, startup)
    shutil.copytree(one.folder / "cache", other.folder / "cache", dirs_exist_ok=True)  # compiling was interrupted
    killed += [other.kill(moment, dice, startup) for moment in MOMENTS[1:]]
    assert [kill["moment"] for kill in killed] == ["start", "work", "write"]
    assert 0 < killed[1]["generations"] < REQUEST["generations"]
    assert killed[1]["generations"] <= killed[2]["generations"]
    assert killed[2]["torn"] != []
    other.finish()
    assert differences(one, other) == []
    assert other.history()["generation"].tolist() == list(range(1, REQUEST["generations"] + 1))
    assert other.torn() == []  # the next process has cleared it away


def test_a_difference_would_be_seen(undisturbed: tuple[Any, float], tmp_path: Path) -> None:
    one, _ = undisturbed
    shutil.copytree(one.folder, tmp_path / "altered")
    other = Campaign(tmp_path / "altered", **REQUEST)
    assert differences(one, other) == []
    path = tmp_path / "altered" / "library" / f"{TOOL['NAME']}.safetensors"
    theta = jax.tree.map(np.array, other.weights().theta)
    last = jax.tree.leaves(theta)[-1]
    last.flat[0] = np.nextafter(last.flat[0], np.float32(np.inf))
    cost = {**other.weights().metadata["cost"], "lifetimes": 1}
    path.unlink()
    save_weights(path, theta, {"cost": cost})
    history = other.evolution / "history.csv"
    history.write_text(history.read_text().replace("\n8,", "\n9,"))
    assert differences(one, other) == ["θ", "history", "cost"]


@pytest.mark.slow
def test_two_processes_give_the_same_bits_as_one(undisturbed: tuple[Any, float], tmp_path: Path) -> None:
    one, _ = undisturbed
    two = Campaign(tmp_path / "two", **REQUEST)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    cluster = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    workers = [two.start(*cluster, str(number)) for number in (0, 1)]
    try:
        codes = [worker.wait(240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    said = (two.folder / "messages.txt").read_text()
    assert codes == [0, 0], said
    assert differences(one, two) == ["cost"]  # the number of devices is a part of it
    costs = [campaign.weights().metadata["cost"] for campaign in (one, two)]
    assert [cost["devices"] for cost in costs] == [1, 2]
    assert costs[0]["env_steps"] == costs[1]["env_steps"] > 0
    assert (two.evolution / "history.png").is_file()
    assert said.count("to be used as open@campaign") == 2
