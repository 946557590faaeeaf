"""Meta-train OPEN on CartPole, watch it, and see what it has learned: python examples/meta_train_open.py

Six minutes on two cores. The weights stay in your library as "open-example"; started again, it goes on.
"""

from pathlib import Path
from typing import Any

import open_bench


def watch(event: Any) -> None:
    """A watcher is a function of events: of each generation this draws what its members reached."""
    if isinstance(event, open_bench.Generation):
        mean = event.row["fitness_mean"]
        print(f"generation {event.row['generation']:>3}  mean return {mean:6.1f}  {'#' * int(mean / 5)}", flush=True)


def main(steps: int | None = None, compare: Any = None, **request: Any) -> Any:
    """The leaderboard of Adam and what was evolved.

    ``request`` is whatever ``open_bench.meta_train`` takes, ``compare`` what ``open_bench.compare`` takes.
    """
    results = Path(request.pop("results", "results/meta-training"))
    trained = open_bench.meta_train(
        "open", **{"study": "open-cartpole", "name": "open-example", "progress": watch, **request},
        steps=steps, results=results,
    )  # fmt: skip
    print(f"{trained.optimizer}: weights in {trained.path}, history in {trained.folder / 'history.png'}")
    board = open_bench.compare(
        optimizers=["adam", trained.optimizer], environments=["cartpole"],
        **{"steps": steps or 20_480, "num_seeds": 16, "results": results, **(compare or {})},
    )  # fmt: skip
    print(board[["rank", "optimizer", "iqm", "iqm_low", "iqm_high"]].to_string(index=False))
    return board


if __name__ == "__main__":
    main()
