"""Pictures of levels and episodes, and `openbench show`."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from click.testing import CliRunner
from commands import Answer, OpenBench
from gridworlds import DOWN, LEFT, RIGHT, STAY, gridworld, random_action, scene

from open_bench.cli.main import cli
from open_bench.environments.gridworld.episodes import play
from open_bench.environments.gridworld.pictures import level_figure, level_text
from open_bench.errors import UserError

# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_text_of_a_level_and_of_an_episode() -> None:
    environment = gridworld("small", min_size=3, max_size=3, min_objects=1, max_objects=1, walls=0)
    level = scene("S.#", "#..", "..a", horizon=20, objects=((0.25, 1.0, 0.05),))
    assert level_text(level).splitlines() == [
        "+-------+", "| S . # |", "| # . . |", "| . . a |", "+-------+", "",
        "a  reward +0.25    ends the episode: 100 %    comes back: 5 % a step",
    ]  # fmt: skip
    actions = jnp.asarray([RIGHT, DOWN, DOWN, LEFT, *[STAY] * 20])
    episode = play(environment, level, lambda key, state, observation: actions[state.time], jax.random.key(0))
    assert level_text(level, episode).splitlines()[1:4] == ["| S v # |", "| # v . |", "| E < a |"]


@pytest.mark.slow
def test_figures_are_drawn_without_pyplot(tmp_path: Path) -> None:
    environment = gridworld("rand_all")
    level = environment.level(jax.random.key(0))
    episode = jax.jit(lambda: play(environment, level, random_action, jax.random.key(1)))()
    for shown in (None, episode):
        figure = level_figure("a level", level, shown, ["a note"])
        figure.savefig(tmp_path / "level.png")
        assert (tmp_path / "level.png").stat().st_size > 5000


@pytest.mark.slow
def test_show(tmp_path: Path) -> None:
    png = tmp_path / "labyrinth.png"
    arguments = ["show", "gridworld/labyrinth", "--path", "optimal", "--png", str(png)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "| . # # # # # # # # # # # . |" in result.output.replace("v", ".").replace("^", ".")
    assert "Expected return: optimal" in result.output
    assert png.read_bytes().startswith(b"\x89PNG")
    other = CliRunner().invoke(cli, ["show", "gridworld/labyrinth", "--seed", "1"]).output
    assert other.splitlines()[-5:] != result.output.splitlines()[-5:]


@pytest.mark.slow
def test_show_plays_a_trained_agent(openbench: OpenBench, tmp_path: Path) -> None:
    """By its optimizer's name, or by its experiment's where there are several."""
    common = ["--results", tmp_path, "--set", "num_envs=16", "--set", "hidden=[4]"]

    def show(path: str, *more: str) -> Answer:
        return openbench("show", "gridworld/small", "--path", path, *common, *more)

    def train(steps: int) -> None:
        answer = openbench("train", "adam", "-e", "gridworld/small", "--steps", steps, "--save-agents", "-q", *common)
        assert answer.code == 0, answer.err

    absent = show("adam")
    assert (absent.code, "holds no agent that adam trained on gridworld/small[" in absent.err) == (2, True)
    train(320)
    shown = show("adam")
    assert "An episode of the agent that adam trained: return" in shown.out and " E " in shown.out
    assert "no saved agent of seed 1" in show("adam", "--seed", "1").err
    train(640)
    several = show("adam")
    assert (several.code, "holds several experiments of adam" in several.err) == (2, True)
    experiments = re.findall(r"gridworld_small\S*--adam--\w+", several.err)
    pictures = [show(experiment).out.splitlines()[:-1] for experiment in experiments]
    assert len(pictures) == 2 and shown.out.splitlines()[:-1] in pictures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "cartpole"], "cartpole draws no levels, so there is nothing to show"),
        (["show", "gridworld/rand_all", "--path", "optimal"], "random places"),
        (["show", "gridworld/labyrint"], r"Did you mean gridworld/labyrinth"),
        (["show", "gridworld/small", "--png", "no/such/folder.png"], r"no/such/folder\.png"),
    ],
)
def test_show_refuses(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
