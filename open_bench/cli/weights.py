"""``openbench weights``: list, inspect, import, export, fetch."""

from pathlib import Path

import click

from open_bench.cli import console
from open_bench.cli.options import JSON


@click.group()
def weights() -> None:
    """Weights of learned optimizers: list, inspect, import, export, fetch."""


@weights.command("list")
@JSON
def list_(as_json: bool) -> None:
    """Show the weights that ship and those in your library."""
    from open_bench.cli.listings import weights as listing

    listing().print(as_json)


@weights.command()
@click.argument("file")
@JSON
def inspect(file: str, as_json: bool) -> None:
    """Show what FILE (or the weights of that name, such as mine or open@mine) holds: kind, hash, arrays, metadata."""
    from open_bench.cli.listings import weights_report
    from open_bench.weights import library

    report = library.inspect_source(file)
    if as_json:
        console.show_json(report)
    else:
        console.show(weights_report(report))


@weights.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--optimizer", "-o", required=True, help="Whose weights they are, such as open or open+lpo.")
@click.option("--name", help="Name in your library; by default the optimizer's, which makes them its default weights.")
@click.option(
    "--train-on", multiple=True, metavar="ENV", help="Where they were trained, if they do not say; repeatable."
)
def import_(file: Path, optimizer: str, name: str | None, train_on: tuple[str, ...]) -> None:
    """Check FILE and keep it in your library: .safetensors, OPEN's .npy, LPO's .npz, Celo's .state, a VeLO folder."""
    from open_bench.environments.registry import load_environment
    from open_bench.weights import library

    trained_on = [load_environment(each).name for each in train_on]  # a file's own, as experiments call it
    path, found = library.import_named(file, optimizer, name, trained_on)
    console.say(f"{path}  {found.hash[:12]}")


@weights.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--optimizer", "-o", help="Whose weights they are; by default as their metadata say.")
@click.option("--format", "kind", help="By default what TARGET's suffix says: .safetensors or .npy.")
@click.option("--overwrite", is_flag=True, help="Replace TARGET where it exists.")
def export(source: str, target: Path, optimizer: str | None, kind: str | None, overwrite: bool) -> None:
    """Write the weights SOURCE (a file, or a name such as mine or open@mine) to TARGET, as .safetensors or a flat
    float32 .npy."""
    from open_bench.weights import library

    spec = library.learned_optimizer(optimizer) if optimizer else library.owner_of(source)
    found = library.load_source(library.split_label(source)[1], spec)
    library.export(found.theta, target, kind, spec=spec, metadata=found.metadata, overwrite=overwrite)
    console.say(f"{target}  {found.hash[:12]}")


@weights.command()
@click.argument("name")
@click.argument("only", nargs=-1)
@click.option("--url", help="Another address of the folder (http, https), or a local folder.")
@click.option("--any-size", is_flag=True, help="Accept other weights of the optimizer than the official ones.")
@click.option("--to", "destination", type=click.Path(path_type=Path), help="Folder; by default your library.")
def fetch(name: str, only: tuple[str, ...], url: str | None, any_size: bool, destination: Path | None) -> None:
    """Download the weights that are published as NAME (open, velo, celo), verify them, and keep them in your library.

    NAME may hold several: `openbench weights fetch open` brings all seven of OPEN's authors, and
    `openbench weights fetch open breakout` one of them, used as open@breakout.
    """
    from open_bench.weights.fetch import fetch_weights, used_as

    with console.download_bars() as update:
        found = fetch_weights(name, only, url, destination, official=not any_size, progress=update)
    for weights, path in found:
        use = "" if destination else f", use it as {used_as(weights)}"
        console.say(f"{path}: verified{use}")
