"""The library of weights: what each optimizer reads, names and places, listing, import and export."""

import dataclasses
import io
import json
import pickle
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import safetensors.numpy

from open_bench.errors import UserError
from open_bench.optimizers import registry
from open_bench.optimizers.resolve import resolve
from open_bench.weights import library
from open_bench.weights.format import WeightsError, content_hash, load_weights, save_weights

CHECKPOINT = Path(__file__).parents[1] / "golden" / "velo_small_checkpoint"
OPEN, VELO, ADAM, LPO_SPEC = (registry.known()[name] for name in ("open", "velo", "adam", "lpo"))
VECTOR = np.random.default_rng(0).normal(size=1211).astype(np.float32)


def read_open(vector, folder):
    np.save(folder / "vector.npy", vector)
    return library.import_file(folder / "vector.npy", OPEN).theta


@pytest.fixture(scope="module")
def theta(tmp_path_factory):
    """θ of OPEN."""
    return read_open(VECTOR, tmp_path_factory.mktemp("theta"))


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


# --- importers -----------------------------------------------------------------------------------------------------


def test_flat_vectors_and_back(tmp_path):
    np.save(tmp_path / "a.npy", VECTOR)
    loaded = library.import_file(tmp_path / "a.npy", OPEN)
    assert loaded.metadata == {"imported_from": "a.npy"}
    library.export(loaded.theta, tmp_path / "b.npy", "npy", spec=OPEN)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), VECTOR)
    library.export(loaded.theta, tmp_path / "c.safetensors", metadata={"parent": loaded.hash})
    assert library.import_file(tmp_path / "c.safetensors", OPEN).hash == loaded.hash


def test_wrong_sizes_say_whose_they_are(tmp_path):
    for size, message in [
        (3571, "x.npy does not fit open: .*3,571 is the size of open-large"),
        (707, "open-feedforward"),
        (514, "no-features"),
        (1200, r"does not fit open: .*\(1200,\).*Known sizes: 1,211 open"),
    ]:
        np.save(tmp_path / "x.npy", np.zeros(size, np.float32))
        with pytest.raises(WeightsError, match=message):
            library.import_file(tmp_path / "x.npy", OPEN)
    np.save(tmp_path / "x.npy", np.zeros(1211, np.float32))
    with pytest.raises(WeightsError, match=r"does not fit adam, which reads no weights; it is a file of open"):
        library.import_file(tmp_path / "x.npy", ADAM)


@pytest.mark.parametrize("shape", [(7, 173), (0,), ()])
def test_a_vector_has_one_dimension(tmp_path, shape):
    (tmp_path / "x.npy").write_bytes(npy(np.zeros(shape, np.float32)))
    with pytest.raises(WeightsError, match=r"shape \(1211,\); found|plain"):
        library.import_file(tmp_path / "x.npy", OPEN)


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.binary(max_size=300), suffix=st.sampled_from([".safetensors", ".npy", ".npz"]))
def test_noise_is_refused_in_words(tmp_path, data, suffix):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="noise"):
        library.import_file(path, OPEN)
    with pytest.raises(WeightsError, match="noise"):
        library.inspect(path)


def test_pickles_are_never_opened(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    for name in ("x.pkl", "x.pt", "x", "x.npy", "x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(WeightsError, match="x"):
            library.import_file(tmp_path / name, LPO_SPEC if name == "x.npz" else OPEN)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "params").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match="flax msgpack"):
        library.import_file(tmp_path / "checkpoint", VELO)
    assert not marker.exists()


def test_lpo(tmp_path):
    path = tmp_path / "lpo.npz"
    kernels = {"kernel_0": np.ones((8, 5), np.float32), "kernel_1": np.ones((5, 1), np.float32)}
    np.savez(path, **kernels)
    assert same(library.import_file(path, LPO_SPEC).theta, {"optimizer": {}, "policy_loss": kernels})
    with pytest.raises(WeightsError, match=r"does not fit open, which reads .*it is a file of lpo"):
        library.import_file(path, OPEN)
    np.savez(path, kernel_0=np.ones((8, 5)), kernel_1=np.ones((4, 1)))
    with pytest.raises(WeightsError, match="kernel_1"):
        library.import_file(path, LPO_SPEC)
    np.savez(path, kernel_0=np.array([None]), kernel_1=np.ones(1))
    with pytest.raises(WeightsError, match="never loaded"):
        library.import_file(path, LPO_SPEC)
    np.savez(path, other=np.ones(1))
    with pytest.raises(WeightsError, match=r"other.npy"):
        library.import_file(path, LPO_SPEC)
    for shapes in [((8,), (5, 1)), ((), ()), ((0, 0), (0, 1)), ((8, 5), (5,)), ((8, 5, 1), (5, 1)), ((9, 5), (5, 1))]:
        np.savez(path, kernel_0=np.ones(shapes[0]), kernel_1=np.ones(shapes[1]))
        with pytest.raises(WeightsError, match="drift network needs"):
            library.import_file(path, LPO_SPEC)


def test_velo_checkpoint(tmp_path):
    loaded = library.import_file(CHECKPOINT, VELO)
    assert loaded.metadata == {"imported_from": "velo_small_checkpoint", "gen_id": "gen", "step": 3}
    save_weights(tmp_path / "velo.safetensors", loaded.theta, loaded.metadata)
    assert library.import_file(tmp_path / "velo.safetensors", VELO).hash == loaded.hash
    with pytest.raises(WeightsError, match="does not fit open"):
        library.import_file(CHECKPOINT, OPEN)
    with pytest.raises(WeightsError, match="params cannot be read"):
        library.import_file(tmp_path, VELO)


def test_export_refuses_what_has_no_flat_order(tmp_path, theta):
    kernels = {"kernel_0": np.ones((8, 5), np.float32), "kernel_1": np.ones((5, 1), np.float32)}
    for value, name, kind, spec, message in [
        (theta, "x", "pickle", OPEN, "open has no form '.pickle'; it can be written as .safetensors, .npy"),
        (theta, "x", None, None, "has no form ''"),
        (theta, "x.npy", None, None, "has no form '.npy'"),
        (theta, "x.npy", "safetensors", OPEN, "would hold safetensors: name it x.safetensors"),
        (library.import_file(CHECKPOINT, VELO).theta, "x.npy", "npy", VELO, "velo has no form"),
        ({"optimizer": {}, "policy_loss": kernels}, "x.npy", "npy", OPEN, "no weights of an optimizer"),
        ({"optimizer": {"a": np.zeros(3)}}, "x.npy", "npy", OPEN, "does not fit open"),
    ]:
        with pytest.raises(WeightsError, match=message):
            library.export(value, tmp_path / name, kind, spec=spec)
    assert not list(tmp_path.iterdir())


def test_export_goes_by_the_suffix_and_replaces_nothing_unasked(tmp_path, theta):
    library.export(theta, tmp_path / "x.npy", spec=OPEN)
    assert np.load(tmp_path / "x.npy").shape == (1211,)
    with pytest.raises(WeightsError, match="exists already"):
        library.export(theta, tmp_path / "x.npy", spec=OPEN)
    library.export(theta, tmp_path / "x.npy", spec=OPEN, overwrite=True)


def test_inspect(tmp_path, theta):
    save_weights(tmp_path / "x.safetensors", theta, {"seed": 1, "optimizer": "open"})
    np.save(tmp_path / "x.npy", np.zeros(3571, np.float32))
    np.save(tmp_path / "y.npy", VECTOR)
    report = library.inspect(tmp_path / "x.safetensors")
    assert (report["kind"], report["parameters"], report["belongs_to"]) == ("safetensors", 1211, "open")
    assert report["metadata"] == {"seed": 1, "optimizer": "open"}
    assert report["arrays"]["optimizer/gru_params/hn/bias"] == [8]
    assert library.inspect(tmp_path / "x.npy")["belongs_to"] == "open-large"
    assert library.inspect(tmp_path / "y.npy")["hash"] == report["hash"]  # known without being told the optimizer
    assert library.inspect(CHECKPOINT)["kind"] == "VeLO checkpoint"
    json.dumps([report, library.inspect(CHECKPOINT)])
    for name, message in [
        ("z.npy", "does not fit open: .*Known sizes"),
        ("z.pkl", "weights are read from .safetensors"),
    ]:
        (tmp_path / name).write_bytes(npy(np.zeros(3)))
        with pytest.raises(WeightsError, match=message):
            library.inspect(tmp_path / name)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- the library ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A shipped folder and the user's folder."""
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "mine"))
    (tmp_path / "shipped").mkdir()
    searched = [tmp_path / "shipped", library.library_dir()]
    monkeypatch.setattr(library, "search_path", lambda: searched)
    return searched


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/etc/passwd", "a\\b", "a b", "a\n", "é", "a\0"]
)
def test_names_hold_no_path(folders, name):
    with pytest.raises(WeightsError, match="no name"):
        library.locate(name)
    with pytest.raises(WeightsError, match="no name"):
        library.save_named(name, {"optimizer": {"a": np.ones(1)}})


def test_library_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("OPEN_BENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert library.library_dir() == tmp_path / "open-bench" / "weights"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert library.library_dir() == Path.home() / ".local/share/open-bench/weights"
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", "~/w")
    assert library.library_dir() == Path.home() / "w"
    shipped, mine = library.search_path()
    assert (shipped.parts[-2:], mine) == (("baselines", "weights"), library.library_dir())


def test_find_prefers_what_ships(folders, theta):
    path = library.save_named("mine-1.0", theta, {"seed": 3})
    assert path.parent == folders[1]
    assert library.load_source("mine-1.0", OPEN).metadata == {"seed": 3}
    library.save_named("mine-1.0", theta, {"seed": 4})  # the same θ may be described anew
    other = jax.tree.map(lambda x: x + 1, theta)
    with pytest.raises(WeightsError, match="other weights"):
        library.save_named("mine-1.0", other)
    save_weights(folders[0] / "mine-1.0.safetensors", other)
    assert library.load_source("mine-1.0", OPEN).hash == content_hash(other)
    np.save(folders[1] / "vector.npy", np.zeros(1211, np.float32))
    shutil.copytree(CHECKPOINT, folders[1] / "velo")
    assert library.load_source("vector", OPEN).theta
    assert library.load_source("velo", VELO).theta
    with pytest.raises(WeightsError, match=r"no weights named 'mine'.*Did you mean mine-1.0.*Known: .*vector"):
        library.load_source("mine", OPEN)


def test_references(folders, tmp_path, monkeypatch, theta):
    library.save_named("a", theta)
    monkeypatch.chdir(tmp_path)
    np.save("b.npy", np.zeros(1211, np.float32))
    shutil.copytree(CHECKPOINT, "folder")
    assert library.load_source("a", OPEN).hash == content_hash(theta)
    assert library.load_source("b.npy", OPEN).theta
    assert library.load_source(str(tmp_path / "b.npy"), OPEN).theta
    assert library.load_source("folder", VELO).theta
    assert library.load_source("./folder", VELO).theta
    for absent, message in [("c", "no weights named"), ("c.npy", "does not exist"), ("x/c", "does not exist")]:
        with pytest.raises(WeightsError, match=message):
            library.load_source(absent, OPEN)


def test_list_weights(folders, theta):
    assert library.list_weights() == []
    library.save_named("b", theta, {"optimizer": "open", "environments": {"cartpole": {"env_steps": 1}}})
    np.save(folders[1] / "a.npy", np.zeros(707, np.float32))
    np.save(folders[1] / "c.npy", np.zeros(700, np.float32))
    (folders[0] / "broken.safetensors").write_bytes(b"x" * 20)
    (folders[0] / "README.md").write_text("no weights")
    broken, a, b, c = library.list_weights()
    assert (broken.name, broken.place, bool(broken.error)) == ("broken", "shipped", True)
    assert (a.name, a.place, a.parameters, a.error, a.trained_on) == ("a", "library", 707, None, ())
    assert a.belongs_to == "open-feedforward"
    assert (b.name, b.hash, b.belongs_to, b.trained_on) == ("b", content_hash(theta), "open", ("cartpole",))
    assert "does not fit" in c.error


def test_import_keeps_a_file_under_a_name(folders, tmp_path):
    np.save(tmp_path / "x.npy", VECTOR)
    path, kept = library.import_named(tmp_path / "x.npy", "open", "mine", trained_on=("breakout", "asterix"))
    assert path == folders[1] / "mine.safetensors"
    loaded = load_weights(path)
    assert loaded.hash == kept.hash
    assert loaded.metadata == {
        "imported_from": "x.npy", "optimizer": "open", "environments": {"breakout": {}, "asterix": {}}
    }  # fmt: skip
    with pytest.raises(WeightsError, match="default weights of velo, but these are open's"):
        library.import_named(tmp_path / "x.npy", "open", "velo")


def test_a_name_may_hold_a_dot_but_not_end_like_a_file(folders, theta):
    kept = library.save_named("mine-1.0", theta)
    assert library.path_of("mine-1.0") == kept
    for name in ("mine.npy", "mine.safetensors"):
        with pytest.raises(WeightsError, match=rf"'{name}' cannot name weights: OPTIMIZER@{name} means a file"):
            library.save_named(name, theta)


# --- whose they are --------------------------------------------------------------------------------------------------


def theta_of(label, scale=0.001):
    """θ of a learned optimizer, full of one number."""
    start = library.learned_optimizer(label).init_theta(jax.random.key(0))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, scale, np.float32), start)


@pytest.mark.parametrize(
    ("owner", "other"), [("open-no-dormancy", "open-no-batch-proportion"), ("celo2-base", "celo2")]
)
def test_weights_of_another_optimizer_are_refused_even_where_they_fit(folders, owner, other):
    path = library.save_named("theirs-1.0", theta_of(owner), {"optimizer": owner})
    assert resolve(f"{owner}@theirs-1.0").weights
    message = rf"weights of {owner}, not of {other}: use them as {owner}@theirs-1.0, or keep .*weights import {path} "
    with pytest.raises(WeightsError, match=message):
        resolve(f"{other}@theirs-1.0")
    with pytest.raises(WeightsError, match=message):
        library.import_file(path, registry.known()[other])
    with pytest.raises(WeightsError, match=f"{path} holds these weights as {owner}'s; choose another --name"):
        library.import_named(path, other, "theirs-1.0")
    kept, _ = library.import_named(path, other, "mine")  # which says that they are its own
    assert resolve(f"{other}@mine").weights.metadata == load_weights(kept).metadata == {"optimizer": other}
    with pytest.raises(WeightsError, match=f"weights of {other}, not of {owner}"):
        resolve(f"{owner}@mine")


@pytest.mark.parametrize("owner", [["open"], {"open": 1}, 3, None, "", "++", "nobodys", "module:open", "adam"])
def test_an_owner_that_means_nothing_excludes_nobody(folders, owner):
    library.save_named("a", theta_of("open"), {"optimizer": owner})
    assert resolve("open@a").weights
    with pytest.raises(WeightsError, match="does not fit open-feedforward"):
        resolve("open-feedforward@a")
    with pytest.raises(WeightsError, match="may be weights of"):
        library.owner_of("a")
    assert library.list_weights()[0].parameters == 1211


def test_a_spec_of_somebodys_takes_what_weights_fit_it(folders):
    library.save_named("a", theta_of("open"), {"optimizer": "open"})
    assert library.load_source("a", dataclasses.replace(OPEN, name="open-mine")).theta


def test_weights_of_a_policy_loss_serve_every_optimizer(folders):
    library.save_named("drift", theta_of("lpo"), {"optimizer": "lpo"})
    library.save_named("both", theta_of("open+lpo"), {"optimizer": "open+lpo"})
    for name in ("lpo@drift", "adam+lpo@drift", "sgd+lpo@drift", "open+lpo@both"):
        assert resolve(name).weights
    with pytest.raises(WeightsError, match=r"they are weights of open\+lpo: use them as open\+lpo@both"):
        resolve("open@both")


@pytest.mark.parametrize("label", ["open", "open+lpo", "adam+lpo", "open:deterministic=true", "optax.sgd+lpo"])
def test_whatever_a_learned_optimizer_is_called_by(folders, tmp_path, label):
    if label.startswith("optax"):
        label = "optax.sgd:learning_rate=0.1+lpo"
    path = library.save_named("a", theta_of(label), {"optimizer": label})
    assert library.split_label(f"{label}@a") == (label, "a")
    assert library.path_of(f"{label}@a") == path
    expected = library.learned_optimizer(label)
    for source in (f"{label}@a", "a", str(path)):
        spec = library.owner_of(source)
        assert (spec.name, spec.policy_loss) == (expected.name, expected.policy_loss)
        assert library.inspect_source(source)["belongs_to"] == label
    kept, _ = library.import_named(path, label, "b")
    assert load_weights(kept).metadata["optimizer"] == label
    assert resolve(f"{label}@b").weights


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("opne", "unknown optimizer 'opne'. Did you mean open"),
        ("opne+lpo", "Did you mean open"),
        ("open+lop", "unknown policy loss 'lop'. Did you mean lpo"),
        ("open:determinstic=true", "Did you mean deterministic"),
        ("adam", "'adam' is not a learned optimizer"),
        ("adam+dpo", r"'adam\+dpo' is not a learned optimizer"),
        ("open@mine", "'open@mine': name the optimizer alone"),
        ("open+", "cannot read"),
    ],
)
def test_labels_that_mean_no_learned_optimizer(folders, tmp_path, label, message):
    with pytest.raises(UserError, match=message):
        library.learned_optimizer(label)
    if "@" not in label:
        with pytest.raises(UserError, match=message):
            library.path_of(f"{label}@mine")
    np.save(tmp_path / "x.npy", VECTOR)
    with pytest.raises(UserError, match=message):
        library.import_named(tmp_path / "x.npy", label, "mine")


def test_default_weights_are_nobody_elses(folders, tmp_path):
    save_weights(tmp_path / "both.safetensors", theta_of("open+lpo"))
    with pytest.raises(WeightsError, match=r"open\+lpo has no default weights"):
        library.import_named(tmp_path / "both.safetensors", "open+lpo")
    with pytest.raises(WeightsError, match=r"default weights of open, but these are open\+lpo's"):
        library.import_named(tmp_path / "both.safetensors", "open+lpo", "open")
    save_weights(tmp_path / "drift.safetensors", theta_of("lpo"))
    path, _ = library.import_named(tmp_path / "drift.safetensors", "adam+lpo")
    assert path.name == "lpo.safetensors"  # which adam+lpo uses, too
    assert resolve("adam+lpo").weights.hash == load_weights(path).hash


def test_optimizer_and_name_must_belong_together(folders):
    library.save_named("a", theta_of("open"), {"optimizer": "open"})
    with pytest.raises(WeightsError, match="lpo has none to learn; they are weights of open: use them as open@a"):
        library.inspect_source("lpo@a")


# --- names and paths -------------------------------------------------------------------------------------------------


def test_what_lies_in_the_working_directory_shadows_no_name(folders, tmp_path, monkeypatch, theta):
    path = library.save_named("a", theta, {"optimizer": "open"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    shutil.copytree(CHECKPOINT, "b")
    for source in ("a", "open@a"):
        assert library.path_of(source) == path
        assert library.owner_of(source).name == "open"
        assert library.inspect_source(source)["hash"] == content_hash(theta)
    assert library.load_source("a", OPEN).hash == content_hash(theta)
    for source in ("b", "./b", str(tmp_path / "b"), "velo@b"):
        assert library.path_of(source).resolve() == tmp_path / "b"
    save_weights("c@d.safetensors", theta, {"optimizer": "open"})
    for source in ("c@d.safetensors", "./c@d.safetensors"):
        assert library.owner_of(source).name == "open"


@pytest.mark.parametrize("source", ["x" * 5000, "~nosuchuser/x"])
def test_what_can_be_no_path(folders, source):
    with pytest.raises(WeightsError, match="is no path of weights") as error:
        library.path_of(source)
    assert len(str(error.value)) < 300


def test_a_folder_without_weights_says_so(folders, tmp_path):
    (tmp_path / "plain").mkdir()
    for use in (
        lambda: library.inspect(tmp_path / "plain"),
        lambda: library.import_file(tmp_path / "plain", VELO),
        lambda: library.import_file(tmp_path / "plain", OPEN),
    ):
        with pytest.raises(WeightsError, match="plain is a folder that holds no weights"):
            use()


def test_a_library_that_can_be_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"file is a file, where a folder .*: set OPEN_BENCH_WEIGHTS to a folder"):
        library.list_weights()
    for value in ("~nosuchuser/x", "x" * 5000):
        monkeypatch.setenv("OPEN_BENCH_WEIGHTS", value)
        with pytest.raises(WeightsError, match=f"OPEN_BENCH_WEIGHTS={value[:80]} names no folder"):
            library.library_dir()


def test_export_names_what_is_in_the_way(tmp_path, theta):
    for target, kind, message in [
        (tmp_path, None, "is a folder: name the file to write"),
        (tmp_path / "x.npy", "a/b", "open has no form '.a/b'"),
        (tmp_path / ("x" * 5000), "npy", "is no path"),
    ]:
        with pytest.raises(WeightsError, match=message):
            library.export(theta, target, kind, spec=OPEN)
    library.export(theta, tmp_path / "x", ".npy", spec=OPEN)
    assert np.load(tmp_path / "x").shape == (1211,)


# --- what is kept already --------------------------------------------------------------------------------------------


def test_importing_again_keeps_what_is_known(folders, tmp_path, theta):
    known = {"optimizer": "open", "run": "0123456789", "cost": {"generations": 3}}
    path = library.save_named("mine", theta, known)
    np.save(tmp_path / "x.npy", VECTOR)
    library.import_named(tmp_path / "x.npy", "open", "mine")
    assert load_weights(path).metadata == known
    library.import_named(tmp_path / "x.npy", "open", "mine", ["breakout"])
    assert load_weights(path).metadata == {**known, "environments": {"breakout": {}}}
    with pytest.raises(WeightsError, match=r"mine.safetensors says .*trained on breakout, and --train-on says ant:"):
        library.import_named(tmp_path / "x.npy", "open", "mine", ["ant"])
    assert load_weights(path).metadata == {**known, "environments": {"breakout": {}}}


def test_environments_that_a_file_states_stay(folders, tmp_path, theta):
    file = tmp_path / "x.safetensors"
    stated = {"cartpole": {"env_steps": 7}}
    save_weights(file, theta, {"environments": stated})
    with pytest.raises(WeightsError, match=r"x.safetensors says .*trained on cartpole, and --train-on says ant"):
        library.import_named(file, "open", "mine", ["ant"])
    assert not list(folders[0].parent.glob("mine/*"))
    for trained_on in ([], ["cartpole"]):
        path, _ = library.import_named(file, "open", "mine", trained_on)
        assert load_weights(path).metadata["environments"] == stated
    save_weights(file, theta, {"environments": ["cartpole"]})
    with pytest.raises(WeightsError, match="trained on cartpole"):
        library.import_named(file, "open", "other", ["ant"])


def test_a_name_is_taken_by_weights_of_any_format(folders, tmp_path, theta):
    folders[1].mkdir()
    np.save(folders[1] / "own.npy", np.zeros(1211, np.float32))
    shutil.copytree(CHECKPOINT, folders[1] / "folder")
    for name in ("own", "folder"):
        with pytest.raises(WeightsError, match=rf"{name}(.npy)? holds other weights; choose another name"):
            library.save_named(name, theta)
    (folders[1] / "cut.npy").write_bytes(b"no array")
    with pytest.raises(WeightsError, match=r"cut.npy has the name 'cut' and cannot be read .*: remove it"):
        library.save_named("cut", theta)
    np.save(folders[1] / "same.npy", VECTOR)
    assert library.path_of("same").suffix == ".npy"
    library.save_named("same", theta, {"optimizer": "open"})  # the same θ may be described
    assert library.path_of("same").suffix == ".safetensors"


def test_an_import_replaces_what_is_damaged(folders, tmp_path, theta):
    np.save(tmp_path / "x.npy", VECTOR)
    path = library.save_named("mine", theta)
    whole = path.read_bytes()
    for damaged in (whole[:500], b"", whole[:-4] + b"\0\0\x80\x3f", whole[:-4] + b"\xff" * 4):
        path.write_bytes(damaged)
        library.import_named(tmp_path / "x.npy", "open", "mine")
        assert load_weights(path).hash == content_hash(theta)
    safetensors.numpy.save_file({"model.layers.0": np.ones(3, np.float32)}, path)  # whole, and somebody's
    with pytest.raises(WeightsError, match=r"mine.safetensors has the name 'mine' and cannot be read"):
        library.import_named(tmp_path / "x.npy", "open", "mine")


@pytest.mark.parametrize("longest", [0, -3])
def test_velo_is_told_of_one_step_at_least(longest):
    with pytest.raises(UserError, match=f"longest = {longest} makes no sense: it must be at least 1"):
        resolve(f"velo:longest={longest}@init")


@pytest.mark.parametrize(
    ("source", "name"), [("mine", "mine"), ("v1.2", "v1.2"), ("mine.safetensors", "mine"), ("a/b.npy", "b")]
)
def test_the_stem_of_weights_is_their_name(source, name):
    assert library.stem(Path(source)) == name
