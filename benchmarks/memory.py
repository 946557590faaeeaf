"""Peak memory of a study: 16 seeds of a full MinAtar lifetime (1e7 env steps), for vmap sizes 1 and 16.

    python benchmarks/memory.py --seconds 60

A lifetime's state holds its returns thinned to 200 points, so its size does not depend on the number of updates
(tests/training); a minute of training, compilation included, therefore shows the peak of the whole run.
"""

import resource
import signal
import subprocess
import sys
import tempfile
import time

import click


def peak(environment: str, vmap_size: int, seconds: float) -> float:
    """Peak resident memory in GiB of ``openbench train`` stopped after ``seconds``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "open_bench", "train", "adam", "-e", environment, "--budget", "full",
                   "--seeds", "16", "--vmap-size", str(vmap_size), "--results", folder, "--quiet"]  # fmt: skip
        process = subprocess.Popen(command)
        time.sleep(seconds)
        if process.poll() is not None:
            raise click.ClickException(f"the run ended by itself with {process.returncode}")
        process.send_signal(signal.SIGINT)
        process.wait()
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


@click.command()
@click.option("--env", "-e", "environment", default="breakout", show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="How long each run trains.")
def main(environment: str, seconds: float) -> None:
    """Print the peaks, the narrow run first (the figure is the largest child so far)."""
    for vmap_size in (1, 16):
        gib = peak(environment, vmap_size, seconds)
        click.echo(f"{environment}, 16 seeds, 1e7 env steps, vmap size {vmap_size}: peak {gib:.2f} GiB")


if __name__ == "__main__":
    main()
