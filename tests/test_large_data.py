"""Samples in files and results written to files: never in memory as a whole."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sknsgf import NSGFPlusPlus, NSGFSampler, TransportAdapter, _base, _validation

CHEAP = {
    "n_flows": 2,
    "max_iter": 5,
    "hidden_layer_sizes": (4,),
    "flow_batch_size": 32,
    "random_state": 0,
}
FLOWS = [NSGFSampler(**CHEAP), NSGFPlusPlus(**CHEAP, n_pairings=2, pairing_size=32)]
DTYPES = ["float32", "float64", "float16", "int16", "uint8", ">f4", ">f8"]
TO_ROWS = ["transform", "inverse_transform"]
METHODS = [*TO_ROWS, "trajectory", "score"]
rng = np.random.default_rng(0)
X_source, X_target = 20 + 4 * rng.normal(size=(150, 2)), 30 + 4 * rng.normal(size=(90, 2))

each_flow = pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: type(flow).__name__)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Make samples of 150 rows consist of several parts."""
    monkeypatch.setattr(_validation, "CHECKED_ENTRIES", 64)
    monkeypatch.setattr(_base, "CPU_CHUNK", 32)


@pytest.fixture
def fitted():
    return clone(FLOWS[0]).fit(X_source, X_target)


@pytest.fixture
def on_disk(tmp_path):
    """Function that writes an array to a file and returns its path."""

    def write(array, name="rows.npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name

    return write


def assert_same_fit(flow, other):
    assert flow.scale_ == other.scale_
    for name in ("center_", "source_sample_", "target_sample_"):
        np.testing.assert_array_equal(getattr(flow, name), getattr(other, name))
    assert flow.target_sample_.dtype == other.target_sample_.dtype
    np.testing.assert_array_equal(flow.transform(X_source), other.transform(X_source))


# Input


@each_flow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "PathLike"])
def test_files_and_memory_maps_give_the_same_bits_as_arrays(flow, dtype, as_path, on_disk):
    source, target = X_source.astype(dtype), X_target.astype(dtype)
    paths = on_disk(source, "source.npy"), on_disk(target, "target.npy")
    before = [path.read_bytes() for path in paths]
    opened = [np.load(path, mmap_mode="r") for path in paths]
    named = [as_path(path) for path in paths]
    of_arrays = clone(flow).fit(source, target)
    assert_same_fit(of_arrays, clone(flow).fit(*opened))
    assert_same_fit(of_arrays, clone(flow).fit(*named))
    assert_same_fit(of_arrays, clone(flow).fit(named[0], X_target=named[1]))
    for method in METHODS:
        expected = getattr(of_arrays, method)(source)
        for rows in (opened[0], named[0]):
            found = getattr(of_arrays, method)(rows)
            np.testing.assert_array_equal(found, expected)
            assert np.asarray(found).dtype == np.asarray(expected).dtype
    assert of_arrays.score(named[0], named[1]) == of_arrays.score(source, target)
    assert of_arrays.score(named[0], X_target=named[1]) == of_arrays.score(source, target)
    assert [path.read_bytes() for path in paths] == before


@each_flow
@pytest.mark.parametrize("early_stopping", [False, True])
def test_one_sample_may_be_a_file(early_stopping, flow, on_disk):
    flow = clone(flow).set_params(early_stopping=early_stopping)
    of_array, of_file = clone(flow).fit(X_target), clone(flow).fit(on_disk(X_target))
    np.testing.assert_array_equal(of_array.sample(7), of_file.sample(7))


@pytest.mark.parametrize("part", [np.s_[::3], np.s_[10:60], np.s_[:, ::-1]])
def test_a_part_of_a_memory_map_is_that_part_of_the_array(part, on_disk, fitted):
    opened = np.load(on_disk(X_source), mmap_mode="r")
    np.testing.assert_array_equal(fitted.transform(opened[part]), fitted.transform(X_source[part]))


def test_a_file_in_column_order_gives_the_same_bits(on_disk):
    source = np.asfortranarray(X_source)
    flow = clone(FLOWS[0]).fit(source, X_target)
    assert_same_fit(flow, clone(FLOWS[0]).fit(on_disk(source), X_target))


def test_changes_in_a_copy_on_write_map_are_seen_and_stay(on_disk, fitted):
    opened = np.load(on_disk(X_source), mmap_mode="c")
    opened += 1
    np.testing.assert_array_equal(fitted.transform(opened), fitted.transform(X_source + 1))
    np.testing.assert_array_equal(opened, X_source + 1)


def test_labels_of_rows_may_be_in_a_file(on_disk):
    labels = on_disk(np.zeros(len(X_source), dtype=int))
    with_labels = clone(FLOWS[0]).fit(X_source, labels, X_target=X_target)
    np.testing.assert_array_equal(
        with_labels.transform(X_source),
        clone(FLOWS[0]).fit(X_source, X_target).transform(X_source),
    )


def test_callbacks_are_given_opened_files(on_disk):
    pytest.importorskip("sklearn.callback")

    class Seen:
        """Callback that keeps the samples it is given."""

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
            self.samples = X, y

        def on_fit_task_end(self, estimator, context):
            return False

    seen, paths = Seen(), [on_disk(X_source, "source.npy"), on_disk(X_target, "target.npy")]
    clone(FLOWS[0]).set_callbacks(seen).fit(*paths)
    for sample, expected in zip(seen.samples, (X_source, X_target), strict=True):
        np.testing.assert_array_equal(sample, expected)


def test_an_adapter_takes_files_too(on_disk):
    labels = (X_source[:, 0] > 20).astype(int)
    adapter = TransportAdapter(clone(FLOWS[0]), LogisticRegression())
    expected = adapter.fit(X_source, labels, X_target=X_target).predict(X_target)
    paths = on_disk(X_source, "source.npy"), on_disk(X_target, "target.npy")
    adapter.fit(paths[0], labels, X_target=paths[1])
    np.testing.assert_array_equal(adapter.predict(paths[1]), expected)


# Errors of input


def raises_for_each_sample(fitted, path, error, message):
    """Check that an error names the sample, wherever a path may be given."""
    for name, call in {
        "X": lambda: clone(fitted).fit(path, X_target),
        "y": lambda: clone(fitted).fit(X_source, path),
        "X_target": lambda: clone(fitted).fit(X_source, X_target=path),
    }.items():
        with pytest.raises(error, match=message.format(name)):
            call()
    for method in METHODS:
        with pytest.raises(error, match=message.format("X")):
            getattr(fitted, method)(path)
    with pytest.raises(error, match=message.format("X_target")):
        fitted.score(X_source, X_target=path)


def test_a_missing_file_is_named(fitted, tmp_path):
    message = r"No such file or directory: '.*absent\.npy'"
    raises_for_each_sample(fitted, tmp_path / "absent.npy", FileNotFoundError, message)
    raises_for_each_sample(fitted, str(tmp_path / "absent.npy"), FileNotFoundError, message)


def test_a_file_of_another_kind_is_refused(fitted, tmp_path):
    message = (
        r"^{} must be an array, or the path of a \.npy file that holds one of numbers\. Got "
        r"'.*rows\.\w+', which could not be opened as such a file: "
    )
    (tmp_path / "rows.csv").write_text("1.0,2.0\n3.0,4.0\n")
    np.savez(tmp_path / "rows.npz", X_source)
    (tmp_path / "rows.empty").touch()
    np.save(tmp_path / "rows.npy", X_source)
    (tmp_path / "rows.cut").write_bytes((tmp_path / "rows.npy").read_bytes()[:-100])
    for suffix in ("csv", "npz", "empty", "cut"):
        raises_for_each_sample(fitted, tmp_path / f"rows.{suffix}", ValueError, message)


def test_a_file_of_objects_is_refused_and_not_unpickled(fitted, on_disk):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    path = on_disk(np.array([[Trap(), Trap()]], dtype=object))
    message = r"^{} must be an array, or .*: Array can't be memory-mapped: Python objects in dtype"
    raises_for_each_sample(fitted, path, ValueError, message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (X_source[:, 0], "Expected 2D array, got 1D array instead"),
        (X_source[None], "Found array with dim 3"),
        (X_source[:0], r"Found array with 0 sample\(s\)"),
        (X_source[:, :0], r"Found array with 0 feature\(s\)"),
        (X_source + 1j, "Complex data not supported"),
        (np.char.add(X_source.astype(str).astype("U3"), "x"), "could not convert string to float"),
    ],
)
def test_a_file_of_what_are_no_rows_raises_as_the_array_does(fitted, on_disk, rows, message):
    path = on_disk(rows)
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            getattr(fitted, method)(path)
    for sample in (rows, path):
        with pytest.raises(ValueError, match=f"^X_target is not valid. .*{message}"):
            clone(fitted).fit(X_source, X_target=sample)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", ">f8"])
@pytest.mark.parametrize("row", [3, 149])
def test_the_error_for_a_number_that_is_not_finite_is_that_of_the_array(
    fitted, on_disk, value, dtype, row
):
    rows = X_source.astype(dtype)
    rows[row, 1] = value
    path = on_disk(rows)
    for call in (fitted.transform, clone(fitted).fit, lambda X: clone(fitted).fit(X_target, X)):
        with pytest.raises(ValueError, match="contains (NaN|infinity)") as of_array:
            call(rows)
        with pytest.raises(ValueError, match="contains (NaN|infinity)") as of_file:
            call(path)
        assert str(of_file.value) == str(of_array.value)


def test_a_file_of_another_width_raises(fitted, on_disk):
    with pytest.raises(ValueError, match="X has 3 features, but NSGFSampler is expecting 2"):
        fitted.transform(on_disk(np.zeros((5, 3))))
    with pytest.raises(ValueError, match="target sample does not match X. It has 3 features"):
        clone(fitted).fit(X_source, on_disk(np.zeros((5, 3))))


# Output


@each_flow
@pytest.mark.parametrize("method", TO_ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_rows_put_into_an_array_or_a_file_are_those_returned(
    flow, method, dtype, n_jobs, on_disk, tmp_path
):
    source = X_source.astype(dtype)
    flow = clone(flow).set_params(n_jobs=n_jobs).fit(source, X_target)
    expected = getattr(flow, method)(source)
    shape = {"shape": expected.shape, "dtype": expected.dtype}
    for rows in (source, on_disk(source)):
        in_memory = np.empty(**shape)
        in_file = np.lib.format.open_memmap(tmp_path / "moved.npy", mode="w+", **shape)
        for out in (in_memory, in_file):
            assert getattr(flow, method)(rows, out=out) is out
            np.testing.assert_array_equal(out, expected)
        in_file.flush()
        np.testing.assert_array_equal(np.load(tmp_path / "moved.npy"), expected)


def test_out_may_be_the_rows_themselves(on_disk, fitted):
    expected = fitted.transform(X_source)
    in_memory, in_file = X_source.copy(), np.load(on_disk(X_source), mmap_mode="r+")
    for rows in (in_memory, in_file):
        fitted.transform(rows, out=rows)
        np.testing.assert_array_equal(rows, expected)


def test_out_may_be_other_columns_of_the_same_array(fitted):
    table = np.hstack([X_source, np.zeros_like(X_source)])
    fitted.transform(table[:, :2], out=table[:, 2:])
    np.testing.assert_array_equal(table[:, 2:], fitted.transform(X_source))
    np.testing.assert_array_equal(table[:, :2], X_source)


def test_out_may_be_a_part_of_a_larger_array(fitted):
    table = np.zeros((200, 2))
    fitted.transform(X_source, out=table[20:170])
    np.testing.assert_array_equal(table[20:170], fitted.transform(X_source))
    assert not table[:20].any()
    assert not table[170:].any()


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((149, 2)), ValueError, r", as the result\. Got shape \(149, 2\) and dtype flo"),
        (np.empty((2, 150)).ravel(), ValueError, r", as the result\. Got shape \(300,\) and"),
        (np.empty((150, 2), "f4"), ValueError, r", as the .* \(150, 2\) and dtype float32\.$"),
        (np.empty((150, 2), ">f8"), ValueError, r", as the .* \(150, 2\) and dtype >f8\.$"),
        (read_only(np.empty((150, 2))), ValueError, r"\. Got one that is read-only\. .*'r\+'"),
        ([[0.0, 0.0]] * 150, TypeError, r"\. Got list\.$"),
        (pd.DataFrame(np.empty((150, 2))), TypeError, r"\. Got DataFrame\.$"),
        ("moved.npy", TypeError, r"\. Got str\.$"),
    ],
)
@pytest.mark.parametrize("method", TO_ROWS)
def test_another_out_is_refused(fitted, method, out, error, message):
    start = r"^out must be a writable NumPy array of shape \(150, 2\) and dtype float64"
    with pytest.raises(error, match=start + message):
        getattr(fitted, method)(X_source, out=out)


def test_a_file_opened_for_reading_is_refused_as_out(on_disk, fitted):
    path = on_disk(X_source)
    with pytest.raises(ValueError, match="Got one that is read-only"):
        fitted.transform(X_source, out=np.load(path, mmap_mode="r"))
    np.testing.assert_array_equal(np.load(path), X_source)


def test_an_out_that_overlaps_the_rows_is_refused(on_disk, fitted):
    in_memory = np.vstack([X_source, [[0.0, 0.0]]])
    in_file = np.load(on_disk(in_memory), mmap_mode="r+")
    for table in (in_memory, in_file):
        before = table.copy()
        for rows, out in [(table[:-1], table[1:]), (table[1:], table[:-1]), (table, table[::-1])]:
            with pytest.raises(ValueError, match="shares no memory with X unless it is X itself"):
                fitted.transform(rows, out=out)
        np.testing.assert_array_equal(table, before)


def test_a_frame_asked_for_holds_the_rows_of_out(fitted):
    expected, out = fitted.transform(X_source), np.empty_like(X_source)
    frame = fitted.set_output(transform="pandas").transform(X_source, out=out)
    assert list(frame.columns) == ["x0", "x1"]
    np.testing.assert_array_equal(frame, expected)
    np.testing.assert_array_equal(out, expected)


def test_out_is_not_routed_metadata():
    with sklearn.config_context(enable_metadata_routing=True):
        flow = clone(FLOWS[0])
        requests = flow.get_metadata_routing()
        assert not hasattr(flow, "set_transform_request")
        assert not hasattr(flow, "set_inverse_transform_request")
        assert requests.transform.requests == {}
        assert requests.inverse_transform.requests == {}
        out = np.empty_like(X_source)
        flow.fit(X_source, X_target).transform(X_source, out=out)
        np.testing.assert_array_equal(out, flow.transform(X_source))
        pipeline = make_pipeline(flow).fit(X_source, X_target)
        np.testing.assert_array_equal(pipeline.transform(X_source), out)


# Memory

MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from sknsgf import NSGFSampler

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

shape, source, target, moved = (2_000_000, 16), *sys.argv[1:]
for path, shift in ((source, 0), (target, 1)):
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    rng = np.random.default_rng(shift)
    for start in range(0, len(rows), 100_000):
        part = rng.standard_normal((100_000, 16), dtype=np.float32)
        rows[start : start + 100_000] = part + shift
    size = rows.nbytes
    del rows
flow = NSGFSampler(n_flows=4, max_iter=20, hidden_layer_sizes=(4,), n_integration_steps=1)
few = np.zeros((100, 16), dtype=np.float32)
flow.fit(few, few + np.arange(100, dtype=np.float32)[:, None]).transform(few)  # first use
out = np.lib.format.open_memmap(moved, mode="w+", dtype=np.float32, shape=shape)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
flow.fit(source, target)
fit = peak() - before
Path("/proc/self/clear_refs").write_text("5")
before = peak()
flow.transform(source, out=out)
print(fit / size, (peak() - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_a_fraction_of_one_of_the_files(tmp_path):
    paths = [str(tmp_path / name) for name in ("source.npy", "target.npy", "moved.npy")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, check=True
    )
    fit, transform = map(float, done.stdout.split())
    assert fit < 1
    assert transform < 0.5
