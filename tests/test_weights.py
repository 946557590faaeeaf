"""θ on disk: round trips, identity, refusals, importers, the library, and the verified download."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import threading
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from open_bench import weights
from open_bench.algorithms.policy_losses import LPO
from open_bench.errors import UserError
from open_bench.optimizers.learned.velo import VELO
from open_bench.optimizers.spec import Learned, OptimizerSpec
from open_bench.weights import WeightsError

CHECKPOINT = Path(__file__).parent / "golden" / "velo_small_checkpoint"
SMALL_BYTES = (CHECKPOINT / "params").stat().st_size


def from_flat(vector):
    """1,211 numbers as two arrays, the second first, so that the order is not the sorted one."""
    if vector.shape != (1211,):
        raise ValueError(f"1211 numbers are needed, not {vector.size}")
    return {"gru": {"kernel": jnp.asarray(vector[200:]).reshape(3, 337)}, "zero": {"bias": jnp.asarray(vector[:200])}}


def init(key):
    return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), from_flat(np.zeros(1211, np.float32)))


def spec(name="open", **changes):
    return OptimizerSpec(name, "", lambda theta, budget: None, **{"learned": Learned(init, from_flat), **changes})


OPEN, ADAM, LPO_ENTRY = spec(), spec("adam", learned=None), spec("lpo", learned=None, policy_loss=LPO)
THETA = {"optimizer": from_flat(np.arange(1211, dtype=np.float32)), "policy_loss": {}}

names = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=6)
numbers = st.floats(-(2.0**99), 2.0**99, width=32)
floats = arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=numbers)


def named(values):
    return st.dictionaries(names, values, min_size=1, max_size=3)


trees = st.recursive(named(floats), named, max_leaves=4)
thetas = st.fixed_dictionaries({"optimizer": trees, "policy_loss": st.one_of(st.just({}), trees)})
comments = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.none()))
quick = hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(
            lambda x, y: np.shape(x) == np.shape(y) and np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b
        )
    )


# --- the format ----------------------------------------------------------------------------------------------------


@quick
@hypothesis.given(theta=thetas, metadata=comments)
def test_round_trip(tmp_path, theta, metadata):
    path = tmp_path / "theta.safetensors"
    identity = weights.save_weights(path, theta, metadata)
    loaded = weights.load_weights(path)
    assert same(loaded.theta, theta)
    assert loaded.metadata == metadata
    assert loaded.hash == identity == weights.content_hash(theta)
    assert os.listdir(tmp_path) == ["theta.safetensors"]


@quick
@hypothesis.given(theta=thetas)
def test_flat_names_and_back(theta):
    assert same(weights.unflatten(weights.flatten(theta)), theta)


@quick
@hypothesis.given(theta=thetas, data=st.data())
def test_identity_ignores_layout_and_sees_every_number(theta, data):
    flat = weights.flatten(theta)
    identity = weights.content_hash(theta)
    turned = {name: np.array(array, np.float64, order="F") for name, array in reversed(flat.items())}
    assert weights.content_hash(weights.unflatten(turned)) == identity
    assert weights.content_hash(jax.tree.map(jnp.asarray, theta)) == identity
    name = data.draw(st.sampled_from(sorted(flat)))
    changed = {n: a.copy() for n, a in flat.items()}
    changed[name] = np.append(changed[name], 1.0).astype(np.float32)
    assert weights.content_hash(weights.unflatten(changed)) != identity


def test_same_content_same_bytes(tmp_path):
    for name in "ab":
        weights.save_weights(tmp_path / name, THETA, {"x": 1, "y": {"seeds": [1, 2]}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shape_is_part_of_the_identity():
    hashes = {weights.content_hash({"optimizer": {"a": np.zeros(shape)}}) for shape in [(4,), (2, 2), (1, 4), (4, 1)]}
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        ({}, "no arrays"),
        ({"optimizer": {}}, "no arrays"),
        ({"optimizer": {"a": {}}}, "no arrays"),
        ({"other": {"a": np.zeros(1)}}, "parts"),
        ({"optimizer": np.zeros(1)}, "parts"),
        ({"optimizer": {"a/b": np.zeros(1)}}, "no name"),
        ({"optimizer": {3: np.zeros(1)}}, "no name"),
        ({"optimizer": {"a": np.zeros(1, int)}}, "int64"),
        ({"optimizer": {"a": np.array([None])}}, "object"),
        ({"optimizer": {"a": "text"}}, "floats"),
        ({"optimizer": {"a": np.array([0, np.nan])}}, "optimizer/a holds 1 NaN"),
        ({"optimizer": {"a": np.array(1e300)}}, "infinite"),
    ],
)
def test_unfit_theta_is_not_saved(tmp_path, theta, message):
    with pytest.raises(WeightsError, match=message) as error:
        weights.save_weights(tmp_path / "x.safetensors", theta)
    assert isinstance(error.value, UserError)
    assert isinstance(error.value, ValueError)
    assert not list(tmp_path.iterdir())


def test_metadata_must_be_json(tmp_path):
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(WeightsError, match="not JSON"):
            weights.save_weights(tmp_path / "x", THETA, bad)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    weights.save_weights(path, THETA)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WeightsError, match="No space left"):
        weights.save_weights(path, {"optimizer": {"a": np.ones(3)}})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_altered_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    weights.save_weights(path, THETA)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="altered"):
        weights.load_weights(path)


def test_unusable_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="does not exist"):
        weights.load_weights(path)
    with pytest.raises(WeightsError, match="is a directory"):
        weights.load_weights(tmp_path)
    weights.save_weights(path, THETA)
    whole = path.read_bytes()
    for data, message in [
        (b"", "is empty"),
        (whole[:-3], "cut short"),
        (whole[:20], "cut short"),
        (pickle.dumps({"a": 1}) * 5, "not a readable safetensors"),
        (safetensors.numpy.save({"optimizer/a": np.zeros(2, np.int32)}), "optimizer/a holds int32"),
        (safetensors.numpy.save({"kernel": np.zeros(2, np.float32)}), "begin with optimizer/ or policy_loss/"),
        (safetensors.numpy.save({"optimizer//a": np.zeros(2, np.float32)}), "begin with"),
        (
            safetensors.numpy.save({"optimizer/a": np.ones(2, np.float32), "optimizer/a/b": np.ones(2, np.float32)}),
            "array already",
        ),
        (safetensors.numpy.save({"optimizer/a": np.array([np.inf], np.float32)}), "infinite"),
        (safetensors.numpy.save({}), "no arrays"),
        (safetensors.numpy.save({"optimizer/a": np.ones(2, np.float32)}, {"open_bench": "{"}), "metadata is damaged"),
        (safetensors.numpy.save({"optimizer/a": np.ones(2, np.float32)}, {"open_bench": "[]"}), "metadata is damaged"),
        (safetensors.numpy.save({"optimizer/a": np.ones(2, np.float32)}, {"open_bench": "[" * 100000}), "metadata is"),
    ]:
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=message):
            weights.load_weights(path)


@quick
@hypothesis.given(data=st.binary(max_size=300), suffix=st.sampled_from([".safetensors", ".npy", ".npz"]))
def test_noise_is_refused_in_words(tmp_path, data, suffix):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="noise"):
        weights.import_file(path, OPEN)


def test_files_of_others_need_no_metadata(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save({"optimizer/a": np.ones(2, np.float16)}))
    loaded = weights.load_weights(tmp_path / "x.safetensors")
    assert loaded.metadata == {}
    assert loaded.theta["optimizer"]["a"].dtype == np.float32


# --- fitting an optimizer ------------------------------------------------------------------------------------------


def test_validate():
    drift = {"kernel_0": np.zeros((8, 4), np.float32), "kernel_1": np.zeros((4, 1), np.float32)}
    weights.validate(THETA, OPEN)
    weights.validate({"optimizer": {}, "policy_loss": drift}, LPO_ENTRY)
    weights.validate({**THETA, "policy_loss": drift}, spec(policy_loss=LPO))
    for theta, whom, message in [
        (THETA, ADAM, "weights of an optimizer, and adam has none"),
        ({**THETA, "policy_loss": drift}, OPEN, "policy_loss ppo of open has none"),
        ({"optimizer": {}, "policy_loss": drift}, OPEN, "no weights of an optimizer"),
        (THETA, spec(policy_loss=LPO), "no weights of an policy_loss"),
        ({"optimizer": {"gru": np.zeros(2)}, "policy_loss": {}}, OPEN, r"x.npy does not fit open: array \['gru'\]"),
        ({"optimizer": {}, "policy_loss": {"kernel_0": np.zeros((7, 4))}}, LPO_ENTRY, "policy_loss lpo of lpo"),
    ]:
        with pytest.raises(WeightsError, match=message):
            weights.validate(theta, whom, "x.npy")


# --- importers -----------------------------------------------------------------------------------------------------


def test_flat_vectors_and_back(tmp_path):
    vector = np.random.default_rng(0).normal(size=1211).astype(np.float32)
    np.save(tmp_path / "a.npy", vector)
    loaded = weights.import_file(tmp_path / "a.npy", OPEN)
    assert loaded.metadata == {"imported_from": "a.npy"}
    weights.export(loaded.theta, tmp_path / "b.npy", "npy", spec=OPEN)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), vector)
    weights.export(loaded.theta, tmp_path / "c.safetensors", metadata={"parent": loaded.hash})
    assert weights.import_file(tmp_path / "c.safetensors", OPEN).hash == loaded.hash


def test_wrong_sizes_say_whose_they_are(tmp_path):
    for size, message in [
        (3571, "3571 numbers, the size of large OPEN .*does not fit open"),
        (707, "feed-forward OPEN"),
        (514, "no features"),
        (1200, "1200 numbers, which does not fit open.* Known sizes: 1211 OPEN"),
    ]:
        np.save(tmp_path / "x.npy", np.zeros(size, np.float32))
        with pytest.raises(WeightsError, match=message):
            weights.import_file(tmp_path / "x.npy", OPEN)
    np.save(tmp_path / "x.npy", np.zeros(1211, np.float32))
    with pytest.raises(WeightsError, match=r"the size of OPEN .*adam does not read flat vectors"):
        weights.import_file(tmp_path / "x.npy", ADAM)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([print, None], dtype=object), allow_pickle=True), "object arrays are never loaded"),
        (pickle.dumps(np.zeros(1211)), "not a plain .npy"),
        (npy(np.zeros(1211, np.float32))[:-8], "not a plain .npy"),
        (npy(np.zeros(1211, np.float32))[:30], "not a plain .npy"),
        (npy(np.zeros(3))[:64].replace(b"(3,)", b"(3" + b"0" * 12 + b",)"), "not a plain .npy"),
        (npy(np.zeros(1211, int)), "int64"),
        (npy(np.zeros((7, 173))), r"shape \(7, 173\)"),
        (npy(np.zeros(0)), "plain|shape"),
        (npy(np.float32(1)), r"shape \(\)"),
        (npy(np.full(1211, np.nan)), "1211 NaN"),
        (b"", "is empty"),
    ],
    ids=range(11),
)
def test_unsafe_or_damaged_vectors(tmp_path, data, message):
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        weights.import_file(path, OPEN)


def test_pickles_are_never_opened(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    for name in ("x.pkl", "x.pt", "x", "x.npy", "x.npz", "x.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(WeightsError, match="x"):
            weights.import_file(tmp_path / name, OPEN)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "params").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match="flax msgpack"):
        weights.import_file(tmp_path / "checkpoint", VELO)
    assert not marker.exists()


def test_lpo(tmp_path):
    path = tmp_path / "lpo.npz"
    kernels = {"kernel_0": np.ones((8, 5), np.float32), "kernel_1": np.ones((5, 1), np.float32)}
    np.savez(path, **kernels)
    assert same(weights.import_file(path, LPO_ENTRY).theta, {"optimizer": {}, "policy_loss": kernels})
    with pytest.raises(WeightsError, match=r"weights of an optimizer|no weights"):
        weights.import_file(path, OPEN)
    np.savez(path, kernel_0=np.ones((8, 5)), kernel_1=np.ones((4, 1)))
    with pytest.raises(WeightsError, match="kernel_1"):
        weights.import_file(path, LPO_ENTRY)
    np.savez(path, kernel_0=np.array([None]), kernel_1=np.ones(1))
    with pytest.raises(WeightsError, match="never loaded"):
        weights.import_file(path, LPO_ENTRY)
    np.savez(path, other=np.ones(1))
    with pytest.raises(WeightsError, match=r"other.npy"):
        weights.import_file(path, LPO_ENTRY)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # the header promises more than there is
        for name in kernels:
            archive.writestr(f"{name}.npy", npy(np.zeros((8, 5)))[:100])
    with pytest.raises(WeightsError, match="readable"):
        weights.import_file(path, LPO_ENTRY)


def test_velo_checkpoint(tmp_path):
    loaded = weights.import_file(CHECKPOINT, VELO)
    assert loaded.metadata == {"imported_from": "velo_small_checkpoint", "gen_id": "gen", "step": 3}
    weights.save_weights(tmp_path / "velo.safetensors", loaded.theta, loaded.metadata)
    assert weights.import_file(tmp_path / "velo.safetensors", VELO).hash == loaded.hash
    with pytest.raises(WeightsError, match="does not fit open"):
        weights.import_file(CHECKPOINT, OPEN)
    with pytest.raises(WeightsError, match="VeLO checkpoint with a file params"):
        weights.import_file(tmp_path, VELO)


def test_export_refuses_what_has_no_flat_order(tmp_path):
    with pytest.raises(WeightsError, match="unknown format"):
        weights.export(THETA, tmp_path / "x", "pickle")
    with pytest.raises(WeightsError, match="velo has no flat order"):
        weights.export(THETA, tmp_path / "x.npy", "npy", spec=VELO)
    with pytest.raises(WeightsError, match="alone"):
        weights.export({"optimizer": {}, "policy_loss": {"a": np.zeros(1)}}, tmp_path / "x.npy", "npy", spec=OPEN)
    with pytest.raises(WeightsError, match=r"does not fit open|arrays of open"):
        weights.export({"optimizer": {"a": np.zeros(3)}}, tmp_path / "x.npy", "npy", spec=OPEN)


def test_inspect(tmp_path):
    weights.save_weights(tmp_path / "x.safetensors", THETA, {"seed": 1})
    np.save(tmp_path / "x.npy", np.zeros(3571, np.float32))
    report = weights.inspect(tmp_path / "x.safetensors")
    assert (report["kind"], report["parameters"], report["metadata"]) == ("safetensors", 1211, {"seed": 1})
    assert report["arrays"] == {"optimizer/gru/kernel": [3, 337], "optimizer/zero/bias": [200]}
    assert "large OPEN" in weights.inspect(tmp_path / "x.npy")["belongs_to"]
    assert weights.inspect(CHECKPOINT)["kind"] == "VeLO checkpoint"
    json.dumps([report, weights.inspect(CHECKPOINT)])


# --- the library ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A shipped folder and the user's folder."""
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", str(tmp_path / "mine"))
    (tmp_path / "shipped").mkdir()
    return [tmp_path / "shipped", weights.library_dir()]


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../a", "/etc/passwd", "a\\b", "a b", "a\n", "é", "a\0"]
)
def test_names_hold_no_path(folders, name):
    with pytest.raises(WeightsError, match="no name"):
        weights.find(name, OPEN, folders)
    with pytest.raises(WeightsError, match="no name"):
        weights.save_named(name, THETA)


def test_library_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("OPEN_BENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert weights.library_dir() == tmp_path / "open-bench" / "weights"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert weights.library_dir() == Path.home() / ".local/share/open-bench/weights"
    monkeypatch.setenv("OPEN_BENCH_WEIGHTS", "~/w")
    assert weights.library_dir() == Path.home() / "w"
    shipped, mine = weights.search_path()
    assert (shipped.parts[-2:], mine) == (("baselines", "weights"), weights.library_dir())


def test_find_prefers_what_ships(folders):
    path = weights.save_named("mine-1.0", THETA, {"seed": 3})
    assert path.parent == folders[1]
    assert weights.find("mine-1.0", OPEN, folders).metadata == {"seed": 3}
    weights.save_named("mine-1.0", THETA, {"seed": 4})  # the same θ may be described anew
    other = jax.tree.map(lambda x: x + 1, THETA)
    with pytest.raises(WeightsError, match="other weights"):
        weights.save_named("mine-1.0", other)
    weights.save_weights(folders[0] / "mine-1.0.safetensors", other)
    assert weights.find("mine-1.0", OPEN, folders).hash == weights.content_hash(other)
    np.save(folders[1] / "vector.npy", np.zeros(1211, np.float32))
    shutil.copytree(CHECKPOINT, folders[1] / "velo")
    assert weights.find("vector", OPEN, folders).theta
    assert weights.find("velo", VELO, folders).theta
    with pytest.raises(WeightsError, match=r"no weights named 'mine'.*Did you mean mine-1.0.*Known: .*vector"):
        weights.find("mine", OPEN, folders)


def test_references(folders, tmp_path, monkeypatch):
    weights.save_named("a", THETA)
    monkeypatch.chdir(tmp_path)
    np.save("b.npy", np.zeros(1211, np.float32))
    shutil.copytree(CHECKPOINT, "folder")
    assert weights.load_reference("a", OPEN, folders).hash == weights.content_hash(THETA)
    assert weights.load_reference("b.npy", OPEN, folders).theta
    assert weights.load_reference(str(tmp_path / "b.npy"), OPEN, folders).theta
    assert weights.load_reference("folder", VELO, folders).theta
    assert weights.load_reference("./folder", VELO, folders).theta
    for absent, message in [("c", "no weights named"), ("c.npy", "does not exist"), ("x/c", "does not exist")]:
        with pytest.raises(WeightsError, match=message):
            weights.load_reference(absent, OPEN, folders)


def test_list_weights(folders):
    assert weights.list_weights(folders) == []
    weights.save_named("b", THETA, {"seed": 1})
    np.save(folders[1] / "a.npy", np.zeros(707, np.float32))
    (folders[0] / "broken.safetensors").write_bytes(b"x" * 20)
    (folders[0] / "README.md").write_text("no weights")
    broken, a, b = weights.list_weights(folders)
    assert (broken.name, broken.place, bool(broken.error)) == ("broken", "shipped", True)
    assert (a.name, a.place, a.parameters, a.hash, a.error) == ("a", "library", 707, None, None)
    assert (b.name, b.hash, b.metadata) == ("b", weights.content_hash(THETA), {"seed": 1})


# --- fetching ------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` with an ETag and Range, and misbehaves as its class attributes say."""

    content: dict
    etag: str | None = '"1"'
    ranges, cut, advertise, redirect = True, None, True, None

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.log.append((name, self.headers.get("Range")))
        if self.redirect:
            self.send_response(302)
            self.send_header("Location", self.redirect)
            self.end_headers()
            return
        if name not in self.content:
            self.send_error(404)
            return
        body, start = self.content[name], 0
        wanted = self.headers.get("Range")
        if wanted and self.ranges and self.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if self.etag:
            self.send_header("ETag", self.etag)
        if self.advertise:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = self.cut if self.cut is not None and name == "params" else len(body)
        self.wfile.write(body[start : max(start, end)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """(address, handler class, requests seen) of a server on loopback."""
    content = {name: (CHECKPOINT / name).read_bytes() for name in ("params", "config.gin")}
    handler = type("Handler", (Server,), {"content": content, "log": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/velo", handler, handler.log
        running.shutdown()
        thread.join()


def fetch(destination, url, **options):
    return weights.fetch_velo(destination, url, **{"params_bytes": SMALL_BYTES, **options})


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COMPLETE = ["config.gin", "fetched.json", "params"]


def test_fetch_and_verify(server, tmp_path):
    url, handler, log = server
    seen = []
    assert fetch(tmp_path / "velo", url, progress=lambda *x: seen.append(x)) == tmp_path / "velo"
    assert files(tmp_path / "velo") == COMPLETE
    assert ("params", SMALL_BYTES, SMALL_BYTES) in seen
    record = json.loads((tmp_path / "velo" / "fetched.json").read_text())
    assert record["files"]["params"]["sha256"] == hashlib.sha256(handler.content["params"]).hexdigest()
    assert weights.import_file(tmp_path / "velo", VELO).theta
    requests = len(log)
    fetch(tmp_path / "velo", url)  # complete: verified, nothing is contacted
    assert len(log) == requests == 2


@pytest.mark.parametrize("advertise", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_continued(server, tmp_path, ranges, advertise):
    url, handler, log = server
    handler.cut, handler.ranges = 1000, ranges
    with pytest.raises(WeightsError, match=f"broke off after 1000 of {SMALL_BYTES} bytes; what arrived is kept"):
        fetch(tmp_path, url)
    assert not (tmp_path / "params").exists()
    handler.cut, handler.advertise = None, advertise
    fetch(tmp_path, url)
    assert log[1] == ("params", "bytes=1000-")
    assert files(tmp_path) == COMPLETE
    assert (tmp_path / "params").read_bytes() == handler.content["params"]


def test_a_changed_file_is_not_continued(server, tmp_path):
    url, handler, _ = server
    handler.cut = 1000
    with contextlib.suppress(WeightsError):
        fetch(tmp_path, url)
    handler.cut, handler.etag = None, '"2"'
    fetch(tmp_path, url)
    assert (tmp_path / "params").read_bytes() == handler.content["params"]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_a_version_nothing_is_kept(server, tmp_path, etag):
    url, handler, log = server
    handler.cut, handler.etag = 1000, etag
    with pytest.raises(WeightsError, match="start afresh"):
        fetch(tmp_path, url)
    assert files(tmp_path) == []
    handler.cut = None
    fetch(tmp_path, url)
    assert log[1] == ("params", None)
    assert files(tmp_path) == COMPLETE


def test_wrong_content_is_refused_and_removed(server, tmp_path):
    url, handler, _ = server
    whole = handler.content["params"]
    for content, options, message in [
        (whole + b"x", {}, f"has {SMALL_BYTES + 1} bytes and {SMALL_BYTES} were expected"),
        (b"<html>sorry</html>", {}, "18 bytes"),
        (b"<html>sorry</html>", {"params_bytes": None}, "no VeLO checkpoint"),
        (whole, {"params_bytes": weights.VELO_BYTES}, "9282564 were expected"),
    ]:
        handler.content["params"] = content
        with pytest.raises(WeightsError, match=message):
            fetch(tmp_path, url, **options)
        assert files(tmp_path) == []
    handler.content["params"], handler.advertise = whole + b"x" * 100, False
    with pytest.raises(WeightsError, match="more than"):
        fetch(tmp_path, url)
    assert files(tmp_path) == []


def test_hashes_of_the_first_fetch_hold(server, tmp_path):
    url, handler, _ = server
    fetch(tmp_path, url)
    original = (tmp_path / "params").read_bytes()
    altered = original[:-4] + bytes([original[-4] ^ 1]) + original[-3:]
    (tmp_path / "params").write_bytes(altered)
    with pytest.raises(WeightsError, match="not the file of the first fetch"):
        fetch(tmp_path, url)
    (tmp_path / "params").unlink()
    handler.content["params"] = altered
    with pytest.raises(WeightsError, match="not the file of the first fetch"):
        fetch(tmp_path, url)
    assert not (tmp_path / "params").exists()
    handler.content["params"] = original
    fetch(tmp_path, url)
    assert files(tmp_path) == COMPLETE
    (tmp_path / "fetched.json").write_text("{}")
    with pytest.raises(WeightsError, match="damaged"):
        fetch(tmp_path, url)


def test_what_the_server_may_say(server, tmp_path):
    url, handler, log = server
    del handler.content["config.gin"]
    with pytest.raises(WeightsError, match=r"config.gin answered 404 .*check the address"):
        fetch(tmp_path, url)
    handler.content["config.gin"] = b""
    fetch(tmp_path, url)
    assert [name for name, _ in log] == ["params", "config.gin", "config.gin"]  # params had arrived
    handler.redirect = "ftp://127.0.0.1/params"
    with pytest.raises(WeightsError, match="redirects to ftp"):
        fetch(tmp_path / "other", url)
    handler.redirect = "file:///etc/passwd"
    with pytest.raises(WeightsError, match="is not allowed"):
        fetch(tmp_path / "other", url)


def test_no_network(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as closed:
        port = closed.server_port
    with pytest.raises(WeightsError, match=r"cannot be reached .*check the network, or give a local folder"):
        fetch(tmp_path, f"http://127.0.0.1:{port}/")


def test_a_local_folder(tmp_path):
    fetch(tmp_path / "a", str(CHECKPOINT))
    assert files(tmp_path / "a") == COMPLETE
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="cannot be copied"):
        fetch(tmp_path / "b", str(tmp_path / "empty"))
    for refused in ("ftp://host/x", "file:///tmp", str(tmp_path / "absent"), "gs://bucket/x"):
        with pytest.raises(WeightsError, match="neither"):
            fetch(tmp_path / "c", refused)


def test_the_default_is_the_official_bucket():
    assert weights.VELO_URL.startswith("https://storage.googleapis.com/gresearch/learned_optimization/")
    assert weights.VELO_BYTES == 9_282_564
