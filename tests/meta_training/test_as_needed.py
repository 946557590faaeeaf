"""What ``compare`` does about learned optimizers without weights, and where weights that ship are found."""

import re
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import pytest
from commands import OpenBench
from tiny_meta import STEPS_PER_UPDATE, TINY, Watch, flags, vector

import open_bench
from open_bench.config import StudyConfig, load_study
from open_bench.errors import UserError
from open_bench.evaluation.baseline_returns import load_baseline_returns
from open_bench.experiments.provenance import provenance
from open_bench.meta_training import as_needed as needed
from open_bench.meta_training.request import Request
from open_bench.meta_training.request import make_request as request_of
from open_bench.meta_training.spec import load_meta
from open_bench.optimizers.resolve import resolve
from open_bench.training.task import make_task
from open_bench.weights import library
from open_bench.weights.format import content_hash, load_weights, save_weights

STEPS = STEPS_PER_UPDATE * 8
META: dict[str, Any] = {"population": 4, "generations": 3, "sigma": 1.0, "fitness": "mean_return"}
STUDY = StudyConfig(name="learned", optimizers=("adam", "open"), environments=("cartpole",), num_seeds=1, meta=META)


def compare(folder: Path, study: StudyConfig = STUDY, watch: Watch | None = None, **changes: Any) -> Any:
    return open_bench.compare(
        study, results=folder, progress=watch, **{"steps": STEPS, "settings": TINY, "devices": 2, **changes}
    )


def rows(board: Any) -> list[str]:
    return sorted(board["optimizer"])


# --- as needed --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_are_evolved_once_then_used_again_and_continued(tmp_path: Path) -> None:
    """Interrupted, finished, used by another results folder, and continued: one name, and evolution from one θ."""
    results = tmp_path / "results"
    interrupted, finished, used, longer = Watch(2), Watch(), Watch(), Watch()
    with pytest.raises(KeyboardInterrupt):
        compare(results, watch=interrupted)
    assert not list(results.glob("experiments/cartpole*"))
    adam, learned = rows(compare(results, watch=finished))
    assert (interrupted.generations, finished.generations) == ([1, 2], [3])
    assert adam == "adam"
    name = learned.partition("@")[2]
    assert re.fullmatch(r"open@open-cartpole-[0-9a-f]{10}", learned)
    stored = load_weights(tmp_path / "library" / f"{name}.safetensors")
    assert stored.metadata["environments"] == {"cartpole": {"env_steps": STEPS}}  # as long as the study's
    assert stored.metadata["identity"]["environments"]["cartpole"]["settings"]["num_envs"] == 4
    again = compare(tmp_path / "elsewhere", watch=used)
    assert (rows(again), used.generations) == (["adam", learned], [])
    assert not (tmp_path / "elsewhere" / "meta").exists()
    assert set(again.loc[again["optimizer"] == learned, "theta"]) == {stored.hash[:12]}
    more = STUDY.model_copy(update={"meta": {**META, "generations": 4}})
    board = compare(results, more, longer)
    assert longer.generations == [4]
    assert any(row.startswith(learned) for row in rows(board))
    with pytest.raises(UserError, match=r"safetensors has 4 generations already, and 3 were asked for: ask for 4"):
        compare(tmp_path / "third")
    assert not (tmp_path / "third").exists()


def make_request() -> Request:
    return request_of("open", needed.settings_for(STUDY, STEPS), load_baseline_returns(), jax.devices()[:2], TINY)


def test_a_second_process_waits_for_the_first_and_uses_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, watch, found = make_request(), Watch(), []
    folder = tmp_path / "meta" / request.default_name
    folder.mkdir(parents=True)
    said = threading.Event()
    monkeypatch.setattr(warnings, "warn", lambda text, **_: (found.append(text), said.set()))

    def wait() -> None:
        found.append(needed.obtain(request, tmp_path, jax.devices()[:2], watch, {}))

    with filelock.FileLock(folder / ".lock"):
        second = threading.Thread(target=wait)
        second.start()
        assert said.wait(30)
        facts = {"run": request.digest, "cost": {"generations": 3}}
        library.save_named(request.default_name, request.start, facts)
    second.join(30)
    name = f"open@{request.default_name}"
    assert found == [f"{folder}: another process is meta-training there; waiting for {name}", name]
    assert watch.generations == []


@pytest.mark.slow
def test_the_work_of_a_process_that_died_is_continued(tmp_path: Path) -> None:
    request, watch = make_request(), Watch()
    folder = tmp_path / "meta" / request.default_name
    folder.mkdir(parents=True)
    lock = filelock.FileLock(folder / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    with pytest.warns(UserWarning, match="another process is meta-training there; waiting for open@open-cartpole"):
        name = needed.obtain(request, tmp_path, jax.devices()[:2], watch, provenance())
    assert watch.generations == [1, 2, 3]
    assert resolve(name).label == name


def test_weights_of_another_making_under_that_name_are_refused(tmp_path: Path) -> None:
    request = make_request()
    library.save_named(request.default_name, request.start, {"run": "0" * 10, "cost": {"generations": 3}})
    with pytest.raises(UserError, match="holds other weights than its name says; remove that file"):
        needed.check(request, tmp_path)


def changed(**changes: Any) -> StudyConfig:
    return STUDY.model_copy(update=changes)


NO_ENVIRONMENT = {"environments": ("cartpole", "UmbrellaChain-bsuite")}
PAIRS = {**META, "task_sampling": "antithetic"}


@pytest.mark.parametrize(
    ("study", "arguments", "message"),
    [
        (changed(optimizers=("open", "adm")), {}, "unknown optimizer 'adm'. Did you mean adam"),
        (changed(optimizers=("open", "adam:b1=x")), {}, "b1 = 'x' is not a finite number"),
        (changed(optimizers=("open", "velo")), {}, "`openbench weights fetch velo` downloads the official ones"),
        (changed(optimizers=("open", "open@nowhere")), {}, "no weights named 'nowhere'"),
        (changed(environments=("cartpole", "brekout")), {}, "unknown environment 'brekout'. Did you mean breakout"),
        (changed(environments=("cartpole", "cartpole")), {}, "cartpole' is named twice"),
        (changed(**NO_ENVIRONMENT), {}, "UmbrellaChain-bsuite cannot be meta-trained on together with others"),
        (changed(meta=PAIRS), {}, "cartpole draws none: train on environments with levels alone"),
        (changed(meta="opn"), {}, "unknown study 'opn'. Did you mean open"),
        (STUDY, {"meta_train": "opn"}, "unknown study 'opn'. Did you mean open"),
        (STUDY, {"vmap_size": 0}, "--vmap-size must be from 1 to 4096, not 0"),
        (
            STUDY,
            {"steps": 10},
            "are fewer than one update of ppo: it needs num_envs × num_steps = 4 × 16 = 64 env steps",
        ),
        (STUDY, {"settings": {"num_env": 4}}, "unknown key 'num_env'. Did you mean num_envs"),
        (STUDY, {"meta_train": False}, "open is a learned optimizer, and no weights named 'open' ship or lie in "),
    ],
)
def test_all_that_can_be_checked_is_checked_before_evolution(
    study: StudyConfig, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    watch = Watch()
    with pytest.raises(UserError, match=re.escape(message)):
        compare(tmp_path / "results", study, watch, **arguments)
    assert watch.generations == []
    assert not (tmp_path / "results").exists()


def test_a_row_that_the_study_names_already_is_refused_before_evolution(tmp_path: Path) -> None:
    name = f"open@{make_request().default_name}"
    save_weights(tmp_path / f"{name.partition('@')[2]}.safetensors", resolve("open@init").theta)
    there = f"open@{tmp_path / name.partition('@')[2]}.safetensors"
    watch = Watch()
    with pytest.raises(UserError, match=f"{name} on .* is asked for twice"):
        compare(tmp_path / "results", changed(optimizers=("open", there)), watch)
    assert watch.generations == []


def test_what_the_settings_leave_open_is_the_studys() -> None:
    study = changed(environments=("cartpole", "catch"), budget="short")
    found = needed.settings_for(study, None)
    assert (found.environments, found.budget, found.env_steps) == (("cartpole", "catch"), "short", None)
    assert needed.settings_for(study, 4096).env_steps == 4096
    own = needed.settings_for(changed(meta="open-cartpole", environments=("catch",)), 4096)
    assert own == load_meta("open-cartpole")
    assert needed.settings_for(changed(meta={"budget": "full"}), 4096).env_steps is None


def test_a_study_may_hold_settings_or_name_another(tmp_path: Path) -> None:
    text = 'name = "mine"\noptimizers = ["open"]\nenvironments = ["cartpole"]\n'
    path = tmp_path / "mine.toml"
    path.write_text(text + 'meta = "open-cartpole"\n')
    assert load_study(str(path)).meta == "open-cartpole"
    path.write_text(text + "[meta]\npopulation = 8\n")
    assert load_study(str(path)).meta == {"population": 8}
    assert needed.settings_for(load_study(str(path)), 512).population == 8
    path.write_text(text + "meta = 3")
    with pytest.raises(UserError, match=r"mine\.toml: meta: 3 is neither the name of a study nor a table of settings"):
        load_study(str(path))
    for line, message in (
        ("[meta]\npopluation = 8", r"\[meta\]: unknown key 'popluation'\. Did you mean population"),
        ("[meta]\npopulation = 7", r"\[meta\]: population = 7 is odd"),
    ):
        path.write_text(text + line)
        with pytest.raises(UserError, match=message):
            compare(tmp_path / "results", load_study(str(path)))
    assert not (tmp_path / "results").exists()


# --- without ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "length", "command"),
    [
        ("open", ("--budget", "short"), "openbench meta-train open -e cartpole --budget short --name open"),
        ("optim4rl:learning_rate=0.1", ("--steps", 4096),
         "openbench meta-train optim4rl -e cartpole --steps 4096 --name optim4rl"),
        ("adam+lpo", ("--budget", "quick"), "openbench meta-train lpo -e cartpole --budget quick --name lpo"),
        ("open+lpo", ("--budget", "quick"), "openbench meta-train open+lpo -e cartpole --budget quick --name mine"),
    ],
)  # fmt: skip
def test_without_leave_to_meta_train_the_command_is_said(
    optimizer: str, length: tuple[str, object], command: str, openbench: OpenBench, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    answer = openbench("compare", "-o", "adam", "-o", optimizer, "-e", "cartpole", *length, "--results", results)
    assert answer.code == 2
    assert f"`{command}`" in answer.err
    assert "--meta-train" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not results.exists()
    # The command is one that can be run: it fails at nothing but the seed that is added here.
    answer = openbench(*command.split()[1:], "--seed", -1, "--results", results)
    assert "root_seed = -1" in answer.err


@pytest.mark.slow
def test_the_command_line_meta_trains_by_a_study(openbench: OpenBench, tmp_path: Path) -> None:
    study = tmp_path / "tiny.toml"
    study.write_text('name = "tiny"\npopulation = 2\ngenerations = 1\nsigma = 1.0\nfitness = "mean_return"\n')
    answer = openbench(
        "compare", "-o", "adam", "-o", "open", "-e", "cartpole", "--steps", STEPS, "--seeds", 1, *flags(TINY),
        "--meta-train", study, "--results", tmp_path / "results", "--plain", "--devices", 2,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "tiny: 1 generation, θ has 1,211 numbers" in answer.err
    assert "open@open-cartpole-" in answer.out
    # Without one: the published settings, on the study's environments, of which one has no reference.
    both = ("-e", "cartpole", "-e", "UmbrellaChain-bsuite", "--results", tmp_path / "x")
    answer = openbench("compare", "-o", "open", "--meta-train", *both)
    assert (answer.code, "cannot be meta-trained on together" in answer.err) == (2, True)
    answer = openbench("compare", "-o", "open", *both)
    assert (answer.code, "no weights named 'open'" in answer.err) == (2, True)
    answer = openbench("compare", "-o", "open", "-e", "cartpole", "--meta-train", "opn", "--results", tmp_path / "x")
    assert (answer.code, (tmp_path / "x").exists()) == (2, False)
    assert "unknown study 'opn'" in answer.err


# --- weights that ship ------------------------------------------------------------------------------------------------


def theta_like(optimizer: str, value: float) -> Any:
    return jax.tree.map(lambda leaf: np.full_like(leaf, value), resolve(f"{optimizer}@init").theta)


@pytest.fixture
def thetas(shipped: Path) -> dict[str, Any]:
    """Three files that ship, with metadata as meta-training writes it."""
    made = {"open": theta_like("open", 0.1), "open-cartpole": theta_like("open", 0.2), "lpo": theta_like("lpo", 0.3)}
    for name, theta in made.items():
        save_weights(shipped / f"{name}.safetensors", theta, {"optimizer": name.partition("-")[0]})
    return made


@pytest.mark.parametrize(
    ("name", "file"),
    [("open", "open"), ("open:deterministic=true", "open"), ("open@open-cartpole", "open-cartpole"), ("lpo", "lpo"),
     ("lion+lpo", "lpo"), ("adam+lpo@lpo", "lpo")],
)  # fmt: skip
def test_weights_that_ship_are_found(name: str, file: str, thetas: dict[str, Any]) -> None:
    found = resolve(name, make_task("cartpole"))
    assert found.label == name
    np.testing.assert_array_equal(vector(found.theta), vector(thetas[file]))
    assert found.theta_hash == content_hash(thetas[file])[:12]


def test_what_is_learned_twice_has_no_weights_by_one_name(thetas: dict[str, Any]) -> None:
    assert resolve("open+lpo", require_weights=False).weights is None
    with pytest.raises(UserError, match="no weights were named"):
        resolve("open+lpo")


def test_what_ships_comes_first_and_its_names_are_taken(
    thetas: dict[str, Any], openbench: OpenBench, tmp_path: Path
) -> None:
    mine = tmp_path / "library" / "open.safetensors"
    save_weights(mine, theta_like("open", 0.9))  # put there by hand, or before others shipped
    np.testing.assert_array_equal(vector(resolve("open").theta), vector(thetas["open"]))
    own = f"open@{mine}"
    np.testing.assert_array_equal(vector(resolve(own).theta), np.full(1211, np.float32(0.9)))
    other = tmp_path / "other.safetensors"
    shutil.copy(mine, other)
    for arguments in (
        ["weights", "import", other, "--optimizer", "open"],
        ["meta-train", "open", "-e", "cartpole", "--name", "open", "--results", tmp_path / "results"],
    ):
        answer = openbench(*arguments)
        assert answer.code == 2
        assert "'open' names weights that ship with open-bench" in answer.err
        assert "choose another --name" in answer.err
    assert not (tmp_path / "results" / "meta").exists()
    assert openbench("weights", "import", other, "--optimizer", "open", "--name", "theirs").code == 0
    assert resolve("open@theirs").weights is not None


def test_weights_that_ship_are_listed(thetas: dict[str, Any], openbench: OpenBench) -> None:
    listed = {line.split()[0]: line for line in openbench("weights", "list").out.splitlines()[1:] if line.strip()}
    for name, theta in thetas.items():
        assert content_hash(theta)[:12] in listed[name]
        assert "shipped" in listed[name]
    assert content_hash(thetas["lpo"])[:12] in openbench("weights", "inspect", "lpo").out


def asking(*optimizers: str) -> StudyConfig:
    return StudyConfig(name="x", optimizers=optimizers, environments=("cartpole",))


def test_several_hosts_do_not_meta_train_as_part_of_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert needed.without_weights(asking("adam", "open@zero")) == []
    with pytest.raises(UserError, match=r"optim4rl: no weights, .* Run `openbench meta-train optim4rl .* first"):
        needed.without_weights(asking("adam", "optim4rl"))


def test_a_study_does_not_meta_train_what_ships(thetas: dict[str, Any]) -> None:
    asked = asking("adam", "open", "lpo", "open@open-cartpole", "optim4rl")
    assert needed.without_weights(asked) == ["optim4rl"]
