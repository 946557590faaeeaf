"""Files of trained agents that are damaged; that they are written and read, ``test_execute`` shows."""

from pathlib import Path

import numpy as np
import pytest

from open_bench.errors import UserError
from open_bench.experiments.agents import AGENTS, load_agent, saved_agents, write_agents


def test_damaged_agents_are_named_and_count_as_absent(tmp_path: Path) -> None:
    for shard, seeds in (("shard-0000-0001", [0, 1]), ("shard-0002", [2])):
        (tmp_path / shard).mkdir()
        write_agents(tmp_path / shard / AGENTS, {"actor": {"layer": {"bias": np.ones((2, 3))}}}, seeds)
    assert saved_agents(tmp_path) == {0, 1, 2}
    np.testing.assert_array_equal(load_agent(tmp_path, 2)["actor"]["layer"]["bias"], np.ones(3))
    path = tmp_path / "shard-0002" / AGENTS
    for content in (b"", path.read_bytes()[:-1], b"\xff" * 100, path.read_bytes().replace(b"2/actor", b"x/actor")):
        path.write_bytes(content)
        assert saved_agents(tmp_path) == {0, 1}
        with pytest.raises(UserError, match=r"is damaged|no saved agent of seed 2"):
            load_agent(tmp_path, 2)
