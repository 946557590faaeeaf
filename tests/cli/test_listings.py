"""Listings: everything is there, in terminals of any width, in pipes, and as JSON."""

import io
import json
from pathlib import Path

import pytest
from commands import OpenBench
from rich.console import Console

from open_bench.algorithms.registry import available as algorithms
from open_bench.cli import listings
from open_bench.config import shipped
from open_bench.optimizers import available as optimizers
from open_bench.optimizers.resolve import resolve
from open_bench.weights.format import content_hash, load_weights, save_weights


def drawn(listing: listings.Listing, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(listing.drawn(width))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


STUDIES = [*shipped("studies"), *shipped("meta"), *shipped("generalize")]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("optimizers", optimizers()),
        ("algorithms", algorithms()),
        ("environments", list(shipped("environments"))),
        ("studies", STUDIES),
        ("weights", ["open", "lpo"]),
    ],
)
def test_everything_is_listed_a_line_each_in_a_pipe(kind: str, names: list[str], openbench: OpenBench) -> None:
    answer = openbench("list", kind)
    assert answer.code == 0, answer.err
    lines = [line.split() for line in answer.out.splitlines()]
    for name in names:
        assert sum(line[0] == name for line in lines if line) == names.count(name), name
    assert not any(line != line.rstrip() for line in answer.out.splitlines())


@pytest.mark.parametrize("kind", ["optimizers", "algorithms", "environments", "studies", "weights"])
def test_the_same_as_json(kind: str, openbench: OpenBench) -> None:
    answer = openbench("list", kind, "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)
    named = [row["name"] for row in rows]
    assert named == [next(iter(row.values())).strip() for row in getattr(listings, kind)().rows]
    if kind == "environments":
        breakout = next(row for row in rows if row["name"] == "breakout")
        assert breakout["budgets"]["quick"] == 300_000
        assert breakout["adam"]["quick"] > breakout["random"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("kind", ["optimizers", "algorithms", "environments", "studies", "weights"])
def test_numbers_and_names_stay_whole(kind: str, width: int) -> None:
    listing = getattr(listings, kind)()
    lines = drawn(listing, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in listing.rows:
        for heading, cell in row.items():
            if heading not in listing.prose and len(cell) < width - 20:
                assert cell.strip() in text, (heading, cell)


def test_damaged_weights_are_listed_with_their_error(
    tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path))
    (tmp_path / "mine.safetensors").write_bytes(b"no weights")
    answer = openbench("weights", "list")
    assert answer.code == 0, answer.err
    (line,) = [line for line in answer.out.splitlines() if line.startswith("mine ")]
    assert "library" in line
    assert "mine.safetensors" in line  # the error names the file
    assert openbench("list", "weights").out == answer.out


def test_inspect(openbench: OpenBench) -> None:
    answer = openbench("weights", "inspect", "open")
    assert answer.code == 0, answer.err
    assert "safetensors, 1,211 numbers" in answer.out
    assert "{" not in answer.out  # metadata are spelt out, key by key
    report = json.loads(openbench("weights", "inspect", "open", "--json").out)
    assert report["parameters"] == 1211
    assert sum(len(shape) > 0 for shape in report["arrays"].values())


def test_importing_and_exporting(tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    target = tmp_path / "theirs.npy"
    assert openbench("weights", "export", "open", target, "-o", "open").code == 0
    assert target.read_bytes().startswith(b"\x93NUMPY")
    again = openbench("weights", "export", "open", target, "-o", "open")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert openbench("weights", "export", "open", target, "-o", "open", "--overwrite").code == 0
    ours = target.read_bytes()
    assert openbench("weights", "export", "open", target, "--overwrite").code == 0  # whose they are, they say
    assert target.read_bytes() == ours
    answer = openbench("weights", "import", target, "-o", "open", "--name", "theirs", "--train-on", "breakout")
    assert answer.code == 0, answer.err
    (line,) = [line for line in openbench("weights", "list").out.splitlines() if line.startswith("theirs ")]
    assert line.split()[-1] == "breakout"
    report = openbench("weights", "inspect", "theirs").out
    assert "trained on breakout\n" in report
    assert "–" not in report
    assert openbench("weights", "inspect", "open@theirs").out == report  # the name that `train` takes
    target.unlink()
    assert openbench("weights", "export", "open@theirs", target).code == 0
    assert target.read_bytes() == ours
    answer = openbench("weights", "import", target, "-o", "open", "--name", "more", "--train-on", "breakuot")
    assert (answer.code, "Did you mean breakout" in answer.err) == (2, True)
    assert not (tmp_path / "library" / "more.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", ""], "name a file of weights"),
        (["inspect", "opne"], "no weights named 'opne'"),
        (["inspect", "nowhere/x.npy"], "nowhere/x.npy"),
        (["inspect", "lpo@open"], "lpo has none to learn; they are weights of open: use them as open@open"),
        (["inspect", "opne@open"], "Did you mean open"),
        (["inspect", "folder"], "folder is a folder that holds no weights"),
        (["import", "x.npy", "-o", "adam"], "'adam' is not a learned optimizer"),
        (["import", "x.npy", "-o", "opne"], "Did you mean open"),
        (["import", "x.npy", "-o", "open", "--name", "lpo"], "would become the default weights of lpo"),
        (["export", "open", "x.npy", "-o", "lpo"], "lpo has none to learn"),
        (["export", "lpo@open", "x.npy"], "lpo has none to learn"),
        (["export", "adam@open", "x.npy"], "'adam' is not a learned optimizer"),
        (["export", "open", "x.npy", "-o", "open", "--format", "safetensors"], "x.npy would hold safetensors"),
        (["export", "open", "x.npy", "--format", "a/b"], "open has no form '.a/b'"),
        (["export", "open", "."], ". is a folder"),
        (["export", "open", "folder", "--overwrite"], "folder is a folder"),
        (["fetch", "open", "ant", "--url", "http://[bad"], "neither an http(s) address nor a local folder"),
        (["fetch", "nothing"], "nothing"),
    ],
)
def test_bad_requests_about_weights(
    arguments: list[str], message: str, tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    (tmp_path / "folder").mkdir()
    answer = openbench("weights", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_weights_of_an_optimizer_and_its_policy_loss(
    tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    theta = resolve("open+lpo@zero").theta
    theta["policy_loss"].update(resolve("lpo@init").theta["policy_loss"])
    save_weights(tmp_path / "x.safetensors", theta)
    answer = openbench("weights", "import", tmp_path / "x.safetensors", "-o", "open+lpo", "--name", "ol")
    assert answer.code == 0, answer.err
    report = openbench("weights", "inspect", "open+lpo@ol")
    assert "weights of open+lpo\n" in report.out
    assert openbench("weights", "inspect", "ol").out == report.out
    exported = tmp_path / "y.safetensors"
    for arguments in (["ol"], ["open+lpo@ol"], ["ol", "-o", "open+lpo"]):
        answer = openbench("weights", "export", arguments[0], exported, *arguments[1:], "--overwrite")
        assert answer.code == 0, answer.err
        assert load_weights(exported).hash == content_hash(theta)


def test_what_is_in_the_working_directory_is_no_name(
    tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = openbench("weights", "inspect", "open").out
    (tmp_path / "open").mkdir()
    monkeypatch.chdir(tmp_path)
    assert openbench("weights", "inspect", "open").out == openbench("weights", "inspect", "open@open").out == before


def test_environments_of_a_file_have_its_own_name(
    tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "library"))
    text = shipped("environments")["cartpole"].read_text()
    (tmp_path / "envx.toml").write_text(text.replace('name = "cartpole"', 'name = "my-pole"'))
    openbench("weights", "export", "open", tmp_path / "x.npy")
    arguments = ["-o", "open", "--name", "mine", "--train-on", tmp_path / "envx.toml"]
    answer = openbench("weights", "import", tmp_path / "x.npy", *arguments)
    assert answer.code == 0, answer.err
    assert list(load_weights(tmp_path / "library" / "mine.safetensors").metadata["environments"]) == ["my-pole"]


def test_a_library_that_is_a_file(tmp_path: Path, openbench: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for library, message in ((tmp_path / "file", "is a file"), ("~nosuchuser/x", "names no folder")):
        monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(library))
        answer = openbench("weights", "list")
        assert (answer.code, answer.out, message in answer.err) == (2, "", True)
