"""The file format of θ: round trips, identity, refusals; numpy's files read safely."""

import io
import json
import os
import pickle
import zipfile

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from open_bench.errors import UserError
from open_bench.weights import format as theta_format
from open_bench.weights.format import WeightsError, content_hash, flatten, load_weights, save_weights, unflatten

THETA = {
    "optimizer": {"gru": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, "zero": {"bias": np.ones(2)}},
    "policy_loss": {},
}

DEEP = b'{"optimizer/a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"

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
    identity = save_weights(path, theta, metadata)
    loaded = load_weights(path)
    assert same(loaded.theta, theta)
    assert loaded.metadata == metadata
    assert loaded.hash == identity == content_hash(theta)
    assert os.listdir(tmp_path) == ["theta.safetensors"]


@quick
@hypothesis.given(theta=thetas)
def test_flat_names_and_back(theta):
    assert same(unflatten(flatten(theta)), theta)


@quick
@hypothesis.given(theta=thetas, data=st.data())
def test_identity_ignores_layout_and_sees_every_number(theta, data):
    flat = flatten(theta)
    identity = content_hash(theta)
    turned = {name: np.array(array, np.float64, order="F") for name, array in reversed(flat.items())}
    assert content_hash(unflatten(turned)) == identity
    assert content_hash(jax.tree.map(jnp.asarray, theta)) == identity
    name = data.draw(st.sampled_from(sorted(flat)))
    changed = {n: a.copy() for n, a in flat.items()}
    changed[name] = np.append(changed[name], 1.0).astype(np.float32)
    assert content_hash(unflatten(changed)) != identity


def test_same_content_same_bytes(tmp_path):
    for name in "ab":
        save_weights(tmp_path / name, THETA, {"x": 1, "y": {"seeds": [1, 2]}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shape_is_part_of_the_identity():
    hashes = {content_hash({"optimizer": {"a": np.zeros(shape)}}) for shape in [(4,), (2, 2), (1, 4), (4, 1)]}
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
        save_weights(tmp_path / "x.safetensors", theta)
    assert isinstance(error.value, UserError)
    assert isinstance(error.value, ValueError)
    assert not list(tmp_path.iterdir())


def test_metadata_must_be_json(tmp_path):
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(WeightsError, match="not JSON"):
            save_weights(tmp_path / "x", THETA, bad)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_weights(path, THETA)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WeightsError, match="No space left"):
        save_weights(path, {"optimizer": {"a": np.ones(3)}})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_altered_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_weights(path, THETA)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="altered"):
        load_weights(path)


def test_unusable_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(path)
    with pytest.raises(WeightsError, match="is a directory"):
        load_weights(tmp_path)
    save_weights(path, THETA)
    whole = path.read_bytes()
    for data, message in [
        (b"", "is empty"),
        (whole[:-3], "cut short"),
        (whole[:20], "cut short"),
        (pickle.dumps({"a": 1}) * 5, "not a readable safetensors"),
        (safetensors.numpy.save({"optimizer/a": np.zeros(2, np.int32)}), "optimizer/a holds int32"),
        (safetensors.numpy.save({"kernel": np.zeros(2, np.float32)}), "begin with optimizer/ or policy_loss/"),
        (safetensors.numpy.save({"/".join(["optimizer", *"a" * 20_000]): np.zeros(1, np.float32)}), "deeper than 32"),
        (len(DEEP).to_bytes(8, "little") + DEEP, "cut short"),
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
            load_weights(path)


def test_files_of_others_need_no_metadata(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save({"optimizer/a": np.ones(2, np.float16)}))
    loaded = load_weights(tmp_path / "x.safetensors")
    assert loaded.metadata == {}
    assert loaded.theta["optimizer"]["a"].dtype == np.float32


def test_files_of_version_1_name_the_policy_loss_otherwise(tmp_path):
    """``objective/…`` is read as ``policy_loss/…``, and its recorded hash still guards it."""
    kernel = np.arange(8, dtype=np.float32)
    flat = {"objective/kernel": kernel, "optimizer/a": kernel}
    recorded = theta_format._hash(flat)

    def save(hash, arrays=flat):
        comments = {"open_bench": json.dumps({"hash": hash, "metadata": {"optimizer": "lpo"}})}
        (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save(arrays, comments))

    save(recorded)
    loaded = load_weights(tmp_path / "x.safetensors")
    expected = {"optimizer": {"a": kernel}, "policy_loss": {"kernel": kernel}}
    assert same(loaded.theta, expected)
    assert loaded.hash == content_hash(expected) != recorded
    save("0" * 64)
    with pytest.raises(WeightsError, match="altered"):
        load_weights(tmp_path / "x.safetensors")
    both = flat | {"policy_loss/kernel": kernel}
    save(theta_format._hash(both), both)
    with pytest.raises(WeightsError, match="appears twice"):
        load_weights(tmp_path / "x.safetensors")


# --- numpy's files ---------------------------------------------------------------------------------------------------


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def header(text, data=b""):
    """An .npy file with any header."""
    text = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([print, None], dtype=object), allow_pickle=True), "object arrays are never loaded"),
        (pickle.dumps(np.zeros(1211)), "not a plain .npy"),
        (npy(np.zeros(1211, np.float32))[:-8], "not a plain .npy"),
        (npy(np.zeros(1211, np.float32)) + b"more", "not a plain .npy"),
        (npy(np.zeros(1211, np.float32))[:30], "not a plain .npy"),
        (npy(np.zeros(3))[:64].replace(b"(3,)", b"(3" + b"0" * 12 + b",)"), "not a plain .npy"),
        (npy(np.zeros(1211, int)), "int64"),
        (npy(np.full(1211, np.nan)), "1211 NaN"),
        (b"", "is empty"),
        (npz(a=np.zeros(3)), "not a plain .npy"),  # an archive under another name
        (b"PK\x03\x04 not a zip either", "not a plain .npy"),
        (header(F4 % "(99999999999999,)"), "promises"),  # 400 terabytes
        (header(F4 % "(-1,)"), "promises"),
        (header(F4 % "(0, 99999999999999999999)"), "not a plain .npy"),
        (header(F4 % "(4611686018427387904, 4)"), "promises"),  # 2⁶⁴ numbers, 0 in 64 bits
        (header(F4 % "(1, 'x"), "not a plain .npy"),
        (header("{'descr': '<f4', (" + "(" * 300), "not a plain .npy"),
        (header("{'descr': '|V0', 'fortran_order': False, 'shape': (3,)}"), "holds"),
        (header("{'descr': ('<f4', (0,)), 'fortran_order': False, 'shape': (3,)}"), "holds"),
        (header(F4 % ("(" + "1," * 99 + ")"), b"abcd"), "not a plain .npy"),
        (header(F4 % "(2,)", b"12345678").replace(b"\x01\x00", b"\x09\x00", 1), "version"),
    ],
    ids=range(21),
)  # fmt: skip
def test_unsafe_or_damaged_arrays(tmp_path, data, message):
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        theta_format.read_npy(path)


@quick
@hypothesis.given(array=floats, fortran=st.booleans(), width=st.sampled_from([np.float16, np.float32, np.float64]))
def test_arrays_are_read_as_numpy_writes_them(tmp_path, array, fortran, width):
    with np.errstate(over="ignore"):
        array = np.asarray(array.astype(width), order="F" if fortran else "C")
    hypothesis.assume(np.isfinite(array).all() and array.size)
    np.save(tmp_path / "x.npy", array)
    found = theta_format.read_npy(tmp_path / "x.npy")
    assert (found.shape, found.dtype) == (array.shape, np.float32)
    np.testing.assert_array_equal(found, array.astype(np.float32))


def test_archives(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(npz(a=np.ones((2, 3)), b=np.zeros(1)))
    assert {name: array.shape for name, array in theta_format.read_npz(path, "ba").items()} == {"a": (2, 3), "b": (1,)}
    for data, message in [
        (npz(other=np.ones(1)), r"holds \['other.npy'\]; expected the arrays a and b"),
        (npz(a=np.array([None]), b=np.ones(1)), "x.npz: a is not a plain .npy.*never loaded"),
        (npz(a=np.ones((2, 3)), b=np.zeros(1))[:-30], "not a readable .npz"),
        (npy(np.zeros(3)), "not a readable .npz"),
    ]:
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=message):
            theta_format.read_npz(path, "ab")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # the header promises more than there is
        for name in "ab":
            archive.writestr(f"{name}.npy", npy(np.zeros((8, 5)))[:100])
    with pytest.raises(WeightsError, match=r"plain .npy"):
        theta_format.read_npz(path, "ab")


# --- damage ----------------------------------------------------------------------------------------------------------


def saved(path):
    save_weights(path, THETA, {"seed": 1})
    return path.read_bytes()


READ = {
    ".safetensors": (load_weights, saved),
    ".npy": (theta_format.read_npy, lambda path: npy(np.ones(9, np.float32))),
    ".npz": (lambda path: theta_format.read_npz(path, "ab"), lambda path: npz(a=np.ones(4), b=np.ones(2))),
}


@pytest.mark.parametrize("suffix", READ)
@hypothesis.settings(quick, max_examples=150)
@hypothesis.given(data=st.data())
def test_mutated_files_are_read_or_refused_in_words(tmp_path, suffix, data):
    path, (read, write) = tmp_path / f"x{suffix}", READ[suffix]
    content = bytearray(write(path))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 400) - 1))
        piece = data.draw(
            st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"(", b"[" * 3000, b"'", b"99"]))
        )
        content[place : place + data.draw(st.integers(0, 4))] = piece
    path.write_bytes(content)
    try:
        read(path)
    except WeightsError as error:
        assert "x" in str(error)
