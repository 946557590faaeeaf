"""``openbench list``, ``show``, ``check``, ``doctor`` and ``completion``: what there is, and whether it is sound."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from open_bench.cli import console
from open_bench.cli.options import ALGORITHM, JSON, RESULTS, SET, optimizer_names, shipped

LISTED = ("optimizers", "algorithms", "environments", "studies", "weights")


@click.command("list")
@click.argument("kind", type=click.Choice(LISTED), metavar="KIND")
@JSON
def list_(kind: str, as_json: bool) -> None:
    """Show what there is. KIND is optimizers, algorithms, environments, studies or weights."""
    from open_bench.cli import listings

    getattr(listings, kind)().print(as_json)


@click.command()
@click.argument("environment", shell_complete=shipped("environments"))
@click.option("--root-seed", type=click.IntRange(0, 1_000_001), default=0, show_default=True,
              help="The root of all keys.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Whose level to show.")
@click.option("--path", metavar="POLICY",
              help="Play an episode and draw it: optimal, random, or an optimizer whose agent is stored.")  # fmt: skip
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture as well.")
@ALGORITHM
@SET
@RESULTS
def show(png: Path | None, **request: Any) -> None:
    """Show the level that a seed trains on, such as a gridworld's.

    \b
    openbench show gridworld/labyrinth --path optimal
    openbench show gridworld/rand_all --seed 3 --png level.png
    openbench train adam -e gridworld/labyrinth --save-agents
    openbench show gridworld/labyrinth --path adam
    """
    from open_bench.experiments.policies import draw_level

    console.say(draw_level(png=png, **request).rstrip("\n"))
    if png is not None:
        console.say(f"Written: {png}")


@click.command()
@click.argument("optimizer", shell_complete=optimizer_names)
@click.option("--no-cost", is_flag=True, help="Leave out the timing against Adam.")
def check(optimizer: str, no_cost: bool) -> None:
    """Check that OPTIMIZER follows the contract: for anyone who writes one. Exits with 1 when a check fails."""
    from open_bench.optimizers import conformance
    from open_bench.optimizers.resolve import resolve

    found = resolve(optimizer)
    passed = True
    for result in conformance.check(found):
        passed &= result.passed
        mark = "[green]pass[/]" if result.passed else "[bold red]FAIL[/]"
        console.OUT.print(f"{mark}  {result.name:<28} {escape(result.detail)}", highlight=False, soft_wrap=True)
    if not passed:
        sys.exit(1)
    if not no_cost:
        cost = conformance.cost(found, resolve("adam"))
        each, whole = cost.state_bytes / cost.parameters, cost.state_bytes / 2**20
        console.say(f"state {each:.1f} bytes a parameter ({whole:.2f} MiB for {cost.parameters:,})")
        console.say(f"step  {1e3 * cost.seconds_per_step:.2f} ms, {cost.relative:.1f} × Adam's")


@click.command()
@RESULTS
@JSON
def doctor(results: Path, as_json: bool) -> None:
    """Look at the installation: versions, devices, memory, folders. Exits with 1 when something is wrong."""
    from open_bench.cli.listings import findings
    from open_bench.experiments.doctor import WRONG, examine

    found = examine(results)
    findings(found).print(as_json)
    if any(each.status == WRONG for each in found):
        sys.exit(1)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and names.

    \b
    openbench completion bash >> ~/.bashrc
    openbench completion zsh >> ~/.zshrc
    openbench completion fish > ~/.config/fish/completions/openbench.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    program = kind(context.find_root().command, {}, "openbench", "_OPENBENCH_COMPLETE")
    # What click's own method returns, without asking the shell for its version: it need not be here.
    console.say(program.source_template % program.source_vars())
