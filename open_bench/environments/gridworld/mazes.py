"""Mazes: maps of walls, those that ship (Jackson et al. 2024, arXiv 2402.05828) and those of users."""

from collections.abc import Mapping
from pathlib import Path

from open_bench import files
from open_bench.errors import UserError, near_matches

MAX_SIZE = 64  # cells a side


def mazes() -> dict[str, Path]:
    """Maps of the mazes that ship, by name."""
    return {path.stem: path for path in sorted((files.configs_dir() / "mazes").glob("*.txt"))}


def read_maze(maze: str) -> tuple[int, tuple[int, ...]]:
    """The map of a maze: ``(side, cells that are walls)``.

    Args:
        maze: a shipped name, the path of a text file, or (with a newline in it) the map itself. A map has as many
            rows as columns, "." for a free cell and "#" for a wall.

    Raises:
        UserError: for an unknown maze, an unreadable file, a map of a wrong size or with other characters.
    """
    origin, text = ("the map", maze) if "\n" in maze else _read_map(maze)
    rows = [line.rstrip() for line in text.strip().splitlines()]
    if not 2 <= len(rows) <= MAX_SIZE:
        raise UserError(f"maze {origin}: it has {len(rows)} rows; from 2 to {MAX_SIZE} are possible")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows):
            raise UserError(
                f"maze {origin}, row {number}: {len(row)} cells, but a maze is square and this one has {len(rows)} rows"
            )
        unknown = sorted(set(row) - {".", "#"})
        if unknown:
            raise UserError(f"maze {origin}, row {number}: unknown character '{unknown[0]}'; known: . free, # wall")
    return len(rows), tuple(cell for cell, character in enumerate("".join(rows)) if character == "#")


def inlined(options: Mapping[str, bool | int | float | str], folder: Path) -> dict[str, bool | int | float | str]:
    """Options with the map itself in place of a file's path, relative to ``folder``: results belong to a map."""
    maze = options.get("maze")
    if not isinstance(maze, str) or "\n" in maze or maze in mazes():
        return dict(options)
    _, text = _read_map(str(folder / Path(maze).expanduser()))
    return {**options, "maze": "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"}


def _read_map(maze: str) -> tuple[str, str]:
    shipped = mazes()
    path = shipped.get(maze, Path(maze).expanduser())
    try:
        return str(path), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"maze '{maze}': neither a file nor a maze that ships.{near_matches(maze, shipped)} "
            f"Known: {', '.join(shipped)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"maze {path}: {error}") from None
