"""Estimators as files: what comes back, what is refused, what a failure leaves behind."""

import copy
import errno
import io
import json
import os
import pickle
import stat
import tracemalloc
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy
import torch
from sklearn.exceptions import NotFittedError

import sknsgf
from sknsgf import NSGFPlusPlus, NSGFSampler, _persistence

CHEAP = {
    "n_steps": 2,
    "n_flows": 4,
    "flow_batch_size": 64,
    "max_iter": 60,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
TWO_PHASES = {**CHEAP, "n_pairings": 4, "pairing_size": 64}
IMAGES = {"network": "unet", "image_shape": (1, 4, 4), "unet_channels": (4, 8), "max_iter": 5}
ESTIMATORS = {
    "sampler": NSGFSampler(**CHEAP),
    "one_sample": NSGFSampler(**CHEAP, time="discrete", early_stopping=True),
    "images": NSGFSampler(**CHEAP | IMAGES),
    "consistent": NSGFPlusPlus(**TWO_PHASES),
    "paper": NSGFPlusPlus(**TWO_PHASES, mode="paper", early_stopping=True),
    "paper_images": NSGFPlusPlus(**TWO_PHASES | IMAGES, mode="paper"),
}
each_kind = pytest.mark.parametrize("kind", ESTIMATORS)

rng = np.random.default_rng(0)
X_source = rng.normal(size=(80, 3))
X_target = rng.normal(size=(70, 3)) * [1.0, 0.5, 2.0] + [4.0, -2.0, 0.0]
SAMPLES = {
    "one_sample": (X_target.astype(np.float32),),
    "images": (rng.normal(size=(70, 16)), rng.normal(size=(80, 16)).astype(np.float32) + 3),
    "paper_images": (rng.normal(size=(70, 16)), rng.normal(size=(80, 16)) + 3),
    "consistent": (
        pd.DataFrame(X_source, columns=["a", "b", "ü\n"]),
        pd.DataFrame(X_target, columns=["a", "b", "ü\n"]),
    ),
}


@pytest.fixture(scope="module")
def kept():
    """Fitted estimators, not to be changed."""
    return {
        kind: copy.deepcopy(estimator).fit(*SAMPLES.get(kind, (X_source, X_target)))
        for kind, estimator in ESTIMATORS.items()
    }


@pytest.fixture
def flow(kept):
    return copy.deepcopy(kept["sampler"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


@pytest.fixture(scope="module")
def files(kept, tmp_path_factory):
    """Bytes of the files of the fitted estimators."""
    path = tmp_path_factory.mktemp("files") / "flow"
    written = {}
    for kind, estimator in kept.items():
        estimator.save(path)
        written[kind] = path.read_bytes()
    return written


def saved_and_loaded(estimator, path):
    assert estimator.save(path) is None
    return sknsgf.load(path)


def assert_identical(first, second):
    """Check that two values are of the same types, sizes, orders and bits all the way down."""
    assert type(first) is type(second)
    if isinstance(first, np.ndarray) and first.dtype != object:
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert first.tobytes() == second.tobytes()
    elif isinstance(first, dict):
        assert list(first) == list(second)
        assert_identical(list(first.values()), list(second.values()))
    elif isinstance(first, list | tuple | np.ndarray):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_identical(one, other)
    else:
        assert repr(first) == repr(second)  # NaN equals NaN here


# What comes back


@each_kind
def test_every_parameter_and_attribute_comes_back(kind, kept, path):
    opened = saved_and_loaded(kept[kind], path)
    assert type(opened) is type(kept[kind])
    assert_identical(vars(opened), vars(kept[kind]))


@each_kind
def test_a_loaded_estimator_returns_the_same_bits(kind, kept, path, monkeypatch):
    monkeypatch.setattr("sknsgf._base.SCORE_ROWS", 50)  # quicker
    flow, opened = kept[kind], saved_and_loaded(kept[kind], path)
    rows = SAMPLES.get(kind, (X_source,))[0][:30]
    for method in ("transform", "inverse_transform", "trajectory", "score"):
        assert_identical(getattr(opened, method)(rows), getattr(flow, method)(rows))
    for arguments in ({}, {"random_state": 3}):
        assert_identical(opened.sample(7, **arguments), flow.sample(7, **arguments))


def test_the_kinds_of_this_file_differ_where_it_matters(kept):
    assert kept["one_sample"].source_sample_ is None
    assert len(kept["one_sample"].validation_loss_curve_) > 0
    assert len(kept["paper"].validation_loss_curves_["transition"]) > 0
    assert list(kept["consistent"].feature_names_in_) == ["a", "b", "ü\n"]
    kept_rows = kept["images"]
    assert (kept_rows.source_sample_.dtype, kept_rows.target_sample_.dtype) == (
        np.float64,
        np.float32,
    )


@pytest.mark.parametrize("kind", ["sampler", "paper"])
def test_warm_start_continues_from_a_loaded_estimator(kind, kept, path):
    flow = copy.deepcopy(kept[kind])
    opened = saved_and_loaded(flow, path)
    for estimator in (flow, opened):
        estimator.set_params(warm_start=True, max_iter=10).fit(X_source + 1, X_target)
    assert_identical(vars(opened), vars(flow))


def test_parameters_and_attributes_of_any_plain_type_come_back(flow, path):
    flow.set_params(
        activation=np.str_("tanh"),
        blur=np.float64(0.1) * 3,
        early_stopping=np.bool_(True),
        hidden_layer_sizes=np.array([16, 4], dtype=">i2").astype(np.int16),
        image_shape=[np.uint8(1), 2.0, float("-inf"), (None, "\udc00", -0.0)],
        max_iter=np.int64(2**62),
        n_jobs=-(10**30),
        tol=np.float32(0.1),
        unet_channels=(),
        validation_fraction=np.float16(0.3),
    )
    flow.n_integration_steps_ = np.int32(3)
    flow.loss_curve_ = [np.float32("nan"), float("inf"), float("-inf"), 5e-324, 0.1 + 0.2]
    flow.sinkhorn_error_ = float("nan")
    flow.set_output(transform="pandas")
    opened = saved_and_loaded(flow, path)
    assert_identical(vars(opened), vars(flow))
    assert isinstance(opened.transform(X_source), pd.DataFrame)


def test_feature_names_are_checked_by_a_loaded_estimator(kept, path):
    opened = saved_and_loaded(kept["consistent"], path)
    with pytest.raises(ValueError, match="feature names should match"):
        opened.transform(pd.DataFrame(X_source, columns=["b", "a", "ü\n"]))


def test_an_estimator_of_a_device_that_is_not_here_opens_on_the_cpu(flow, path):
    expected, flow.device_ = flow.transform(X_source), "cuda:99"
    opened = saved_and_loaded(flow, path)
    assert opened.device_ == "cuda:99"
    if not torch.cuda.is_available():
        assert_identical(opened.transform(X_source), expected)


def test_arrays_that_joblib_maps_from_disk_are_saved_as_arrays(flow, path, tmp_path):
    np.save(tmp_path / "rows.npy", flow.target_sample_)
    flow.target_sample_ = np.load(tmp_path / "rows.npy", mmap_mode="r")
    opened = saved_and_loaded(flow, path)
    assert type(opened.target_sample_) is np.ndarray
    np.testing.assert_array_equal(opened.target_sample_, flow.target_sample_)


def test_arrays_of_a_loaded_estimator_can_be_written_to(kept, path):
    opened = saved_and_loaded(kept["sampler"], path)
    assert all(array.flags.writeable for array in opened.network_parameters_.values())
    assert opened.target_sample_.flags.writeable


def test_the_same_estimator_is_the_same_file(kept, files, path):
    for kind in ESTIMATORS:
        saved_and_loaded(kept[kind], path).save(path)
        assert path.read_bytes() == files[kind]


def test_saving_and_loading_leave_everything_else_as_it_was(flow, path):
    before = copy.deepcopy(vars(flow))
    states = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    with torch.device("meta"), torch.inference_mode():
        opened = saved_and_loaded(flow, str(path))
    assert_identical(vars(flow), before)
    assert_identical(np.random.get_state(), states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    assert_identical(opened.transform(X_source), flow.transform(X_source))


def test_the_weights_can_be_read_without_sknsgf(kept, files):
    tensors = safetensors.numpy.load(files["consistent"])
    weights = tensors["network_parameters_/straight/layers.0.weight"]
    assert_identical(weights, kept["consistent"].network_parameters_["straight"]["layers.0.weight"])


# What is not written


class Subclass(NSGFSampler):
    """A user's estimator."""


def with_attributes(**attributes):
    return lambda flow: vars(flow).update(attributes)


def with_parameters(**parameters):
    return lambda flow: flow.set_params(**parameters)


UNWRITABLE = [
    (
        with_parameters(network=torch.nn.Linear),
        TypeError,
        "save cannot write network=<class .*Linear'>. Use pickle or joblib",
    ),
    (
        with_parameters(random_state=np.random.RandomState(0)),
        TypeError,
        r"save cannot write random_state=RandomState.*\. Use an int, or pickle or joblib",
    ),
    (
        with_parameters(hidden_layer_sizes=pd.Series([16])),
        TypeError,
        "(?s)save cannot write hidden_layer_sizes=.*Use pickle or joblib",
    ),
    (
        with_parameters(image_shape=(1, {2: 3})),
        TypeError,
        "save cannot write image_shape/1={2: 3}. Use pickle or joblib",
    ),
    (
        with_parameters(image_shape=np.ma.array([1, 2])),
        TypeError,
        "save cannot write image_shape=.*Use pickle or joblib",
    ),
    (
        with_attributes(sinkhorn_error_=np.longdouble(0)),
        TypeError,
        "save cannot write sinkhorn_error_=.*Use pickle or joblib",
    ),
    (
        with_attributes(note="mine"),
        ValueError,
        "NSGFSampler.save writes what fit sets. Got another attribute, 'note'. Delete it, or",
    ),
    (
        lambda flow: vars(flow).pop("scale_"),
        ValueError,
        "NSGFSampler.save would write what load refuses. The attribute 'scale_' is missing",
    ),
    (
        with_parameters(n_steps=0),
        ValueError,
        r"would write what load refuses. The 'n_steps' parameter of NSGFSampler must be an int",
    ),
    (
        with_attributes(method_="rk5"),
        ValueError,
        "would write what load refuses. The attribute 'method_' must be a str among .*Got 'rk5'",
    ),
    (
        lambda flow: setattr(flow, "__class__", Subclass),
        TypeError,
        "save writes an NSGFPlusPlus or NSGFSampler, of which <class .*Subclass'> is only a "
        "subclass. Use pickle or joblib",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), UNWRITABLE)
def test_what_a_file_cannot_hold_is_refused_and_nothing_is_written(
    change, error, message, flow, path
):
    change(flow)
    with pytest.raises(error, match=message):
        flow.save(path)
    assert os.listdir(path.parent) == []


def test_an_estimator_that_is_not_fitted_is_not_written(path):
    with pytest.raises(NotFittedError, match="This NSGFSampler instance is not fitted yet"):
        NSGFSampler().save(path)
    assert not path.exists()


def test_a_path_must_be_a_path(flow):
    message = r"The 'path' parameter of {} must be an instance of 'str' or .*PathLike'. Got 3 inst"
    with pytest.raises(ValueError, match=message.format("NSGFSampler.save")):
        flow.save(3)
    with pytest.raises(ValueError, match=message.format("load")):
        sknsgf.load(3)


# Failures while writing


def out_of_space(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*args):
    raise KeyboardInterrupt


class HalfWritten(io.FileIO):
    """File on a disk that is full after half of what is written."""

    def write(self, data):
        super().write(data[: len(data) // 2])
        out_of_space()


@pytest.mark.parametrize("before", [None, b"an older file"])
@pytest.mark.parametrize(
    ("stage", "failure"),
    [
        ("open", out_of_space),
        ("open", HalfWritten),
        ("os.fsync", out_of_space),
        ("os.fsync", interrupted),
        ("os.replace", out_of_space),
        ("os.replace", interrupted),
    ],
)
def test_a_failure_while_writing_leaves_the_older_file(
    stage, failure, before, flow, path, monkeypatch
):
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(f"sknsgf._persistence.{stage}", failure, raising=False)
    with pytest.raises((OSError, KeyboardInterrupt)) as caught:
        flow.save(path)
    if failure is not interrupted:
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    assert os.listdir(path.parent) == ([] if before is None else [path.name])
    if before is not None:
        assert path.read_bytes() == before


def test_a_file_is_on_the_disk_before_it_takes_its_place(flow, path, monkeypatch):
    calls = []

    def noted(name, call):
        return lambda *args: (calls.append(name), call(*args))

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    flow.save(path)
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("absent/flow", FileNotFoundError),
        ("file/flow", NotADirectoryError),
        ("folder", IsADirectoryError),
    ],
)
def test_where_no_file_can_be_is_the_usual_error(name, error, flow, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for call in (flow.save, sknsgf.load):
        with pytest.raises(error) as caught:
            call(tmp_path / name)
        assert os.fspath(caught.value.filename) == str(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_is_like_any_other_of_the_user(flow, path):
    (path.parent / "other").touch()
    link = path.parent / "link"
    link.symlink_to(path)
    flow.save(link)
    assert link.is_symlink()
    assert sorted(os.listdir(path.parent)) == ["flow.safetensors", "link", "other"]
    modes = {stat.S_IMODE(os.stat(path.parent / name).st_mode) for name in (path.name, "other")}
    assert len(modes) == 1


# Files that are refused


def refused(data, path, message=None):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        sknsgf.load(path)
    assert str(caught.value).startswith(f"{str(path)!r} cannot be loaded. ")


def from_header(header, data=b"", *, length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(header) if length is None else length
    return length.to_bytes(8, "little") + header + data


NO_FILE = "It is empty, cut short or no safetensors file"
FOREIGN = [
    (b"", NO_FILE),
    (b"\x01\0\0", NO_FILE),
    (bytes(8), NO_FILE),
    (b"flow: NSGFSampler\n" * 100, NO_FILE),
    (pickle.dumps({"network": np.zeros(3)}), NO_FILE),
    (from_header(b"{}", length=2**64 - 1), NO_FILE),
    (from_header(b"{}", length=3), NO_FILE),
    (from_header(b"\xff{}"), "Its header is no JSON text"),
    (from_header(b'{"a": '), "Its header is no JSON text"),
    (from_header(b"[" * 100_000), "Its header is no JSON text"),
    (from_header([]), "Its header is no JSON object"),
    (safetensors.numpy.save({"a": np.zeros(3)}), "safetensors file that sknsgf did not write"),
    (from_header({"__metadata__": []}), "safetensors file that sknsgf did not write"),
    (from_header({"__metadata__": {"sknsgf": {}}}), "safetensors file that sknsgf did not write"),
    (from_header({"__metadata__": {"sknsgf": "{"}}), "Its record is no JSON text"),
    (from_header({"__metadata__": {"sknsgf": "3"}}), "Its record is no JSON object"),
    (from_header({"__metadata__": {"sknsgf": "{}"}}), "Its record must hold sha256, format, .*"),
]


@pytest.mark.parametrize(("data", "message"), FOREIGN)
def test_what_is_no_file_of_an_estimator_is_refused(data, message, path):
    refused(data, path, message)


@each_kind
def test_a_file_that_is_cut_or_extended_is_refused(kind, files, path):
    data = files[kind]
    refused(data[:-1], path, "It was damaged or changed: its bytes do not match its checksum")
    refused(data + b"\0", path, "It was damaged or changed")
    refused(data[: len(data) // 3], path, "cut short|damaged")
    refused(b"\0" + data, path)


def test_no_bit_of_a_file_can_flip_unnoticed(files, path):
    data = files["sampler"]
    header_end = 8 + int.from_bytes(data[:8], "little")
    brackets = data.rindex(b"}", 0, header_end)
    at_ends = [*range(12), *range(brackets - 100, header_end + 4), len(data) - 1]
    in_checksum = range(data.index(b"sha256"), data.index(b"format"))
    for place in (*at_ends, *in_checksum):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        refused(changed, path)
        changed[place] = data[place] ^ 32  # the case of a letter
        refused(changed, path)


def test_blanks_between_header_and_tensors_are_covered_by_the_checksum(files, path):
    data = files["sampler"]
    header_end = 8 + int.from_bytes(data[:8], "little")
    assert data[header_end - 1 : header_end] in (b"}", b" ")
    header = data[8:header_end] + 8 * b" "
    refused(from_header(header, data[header_end:]), path, "do not match its checksum")


def mutated(data, random):
    """The bytes after one accident."""
    kind, size = random.integers(6), len(data)
    start, length = random.integers(size), random.integers(1, 200)
    stop = min(start + length, size)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[stop:]
    if kind == 2:
        return data[:start] + random.bytes(length) + data[start:]
    if kind == 3:
        return data[:start] + random.bytes(stop - start) + data[stop:]
    if kind == 4:  # a block with the one after it
        end = stop + (stop - start)
        return data[:start] + data[stop:end] + data[start:stop] + data[end:]
    changed = bytearray(data)
    for place in random.integers(size, size=random.integers(1, 4)):
        changed[place] ^= 1 << random.integers(8)
    return bytes(changed)


def check_mutations(files, path, n_mutations):
    random, n_refused = np.random.default_rng(0), 0
    for index in range(n_mutations):
        data = files[list(files)[index % len(files)]]
        changed = mutated(data, random)
        if changed != data:
            refused(changed, path)
            n_refused += 1
    assert n_refused > 0.9 * n_mutations


def test_random_accidents_are_noticed(files, path):
    check_mutations(files, path, 500)


@pytest.mark.endurance
def test_many_random_accidents_are_noticed(files, path):
    check_mutations(files, path, 10_000)


# Files whose checksum someone computed anew


def signed(data):
    """The bytes with the checksum that belongs to them."""
    start = data.index(b'sha256\\": \\"') + len(b'sha256\\": \\"')
    unsigned = data[:start] + b"0" * 64 + data[start + 64 :]
    return data[:start] + sha256(unsigned).hexdigest().encode() + data[start + 64 :]


def forged(data, change):
    """The file after ``change(record, tensors)``, signed."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    record, tensors = json.loads(header["__metadata__"]["sknsgf"]), safetensors.numpy.load(data)
    change(record, tensors)
    metadata = {"sknsgf": json.dumps(record)}
    return signed(safetensors.numpy.save(tensors, metadata=metadata))


def in_record(*keys, to):
    """Change of one value of the record."""

    def change(record, tensors):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = to

    return change


def parameter(name, value):
    return in_record("params", name, to=value)


def attribute(name, value):
    return in_record("fitted", name, to=value)


def in_design(name, value):
    return in_record("fitted", "_design", "design", "dict", name, to=value)


def tensor(name, change):
    def changed(record, tensors):
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return changed


def with_nan(array):
    array = array.copy()
    array.flat[-1] = np.nan
    return array


def test_a_file_that_is_signed_unchanged_is_loaded(kept, files, path):
    for kind in ESTIMATORS:
        path.write_bytes(forged(files[kind], lambda record, tensors: None))
        assert path.read_bytes() == files[kind]


WEIGHTS = "network_parameters_/layers.0.weight"
NOT_WRITTEN = "It holds what save does not write"
FORGERIES = {
    "newer": (
        in_record("format", to=2),
        "It was written by a newer sknsgf: format 2 of version 0.1.0, and this one, .* reads up to "
        "format 1. Upgrade sknsgf",
    ),
    "format 0": (in_record("format", to=0), "Its record must hold sha256, .*with format 1"),
    "format True": (in_record("format", to=True), "Its record must hold sha256"),
    "format as text": (in_record("format", to="2"), "Its record must hold sha256"),
    "further entry": (in_record("more", to=1), "Its record must hold sha256"),
    "params as list": (in_record("params", to=[]), "Its record must hold sha256"),
    "class": (
        in_record("class", to="BaseFlow"),
        "It must hold an NSGFPlusPlus or NSGFSampler. Got 'BaseFlow' instead",
    ),
    "other class": (in_record("class", to="NSGFPlusPlus"), "The parameter 'mode' is missing or"),
    "parameter more": (parameter("aa", 1), "The parameter 'aa' is missing or unknown"),
    "parameter less": (lambda r, t: r["params"].pop("blur"), "The parameter 'blur' is missing"),
    "blur": (parameter("blur", -1.0), "The 'blur' parameter of NSGFSampler must be"),
    "blur overflows": (parameter("blur", 1e999), "The 'blur' parameter of NSGFSampler must be"),
    "network": (parameter("network", {"eval": "f"}), "what is not there: {'eval': 'f'}"),
    "deep": (parameter("image_shape", json.loads("[" * 900 + "]" * 900)), "is malformed|no JSON"),
    "attribute more": (attribute("transform", 1), "The attribute 'transform' is unknown"),
    "attribute less": (lambda r, t: r["fitted"].pop("blur_"), "The attribute 'blur_' is missing"),
    "n_features_in_": (attribute("n_features_in_", 2), "'source_mean_' must be a float64 array"),
    "names": (attribute("feature_names_in_", {"objects": ["a"]}), "an array with a string for"),
    "no names": (attribute("feature_names_in_", {"objects": [1, 2, 3]}), "an array with a string"),
    "output": (
        attribute("_sklearn_output_config", {"dict": {"transform": "html"}}),
        "'_sklearn_output_config' must be what set_output sets",
    ),
    "device": (attribute("device_", "cuda:x"), "'device_' must be 'cpu', 'cuda' or"),
    "scale": (attribute("scale_", 0.0), r"'scale_' must be a float in the range \(0.0, inf\)"),
    "scale inf": (attribute("scale_", {"float": "inf"}), "'scale_' must be a float"),
    "steps": (attribute("step_sizes_", [0.5, 2.0]), r"'step_sizes_' must be .* \(0, 1\]"),
    "no steps": (attribute("step_sizes_", []), "'step_sizes_' must be a list"),
    "losses": (attribute("loss_curve_", [1.0, "x"]), "'loss_curve_' must be a list of numbers"),
    "error": (attribute("sinkhorn_error_", -1), "'sinkhorn_error_' must be a number of at least"),
    "method": (attribute("method_", ["rk4"]), "'method_' must be a str among"),
    "n steps": (attribute("n_integration_steps_", 0), "'n_integration_steps_' must be an int"),
    "discrete": (attribute("time_", "discrete"), "time='discrete' of NSGFSampler learns the field"),
    "prediction": (attribute("prediction_", "endpoint"), "'_design' must be the design of a"),
    "no design": (attribute("_design", None), "'_design' must be the design of a network"),
    "design of fields": (in_design("more", 1), "Its record is malformed: .*'more'"),
    "design as list": (attribute("_design", {"design": [1]}), "Its record is malformed"),
    "design network": (in_design("network", "cnn"), "The 'network' parameter of NSGFSampler must"),
    "design features": (in_design("n_features", 4), "'_design' must be the design of a network"),
    "design sizes": (in_design("hidden_layer_sizes", {"tuple": [4]}), "weights do not fit the n"),
    "design list": (in_design("hidden_layer_sizes", [16]), "'_design' must be the design of a"),
    "design texts": (in_design("hidden_layer_sizes", {"tuple": ["x"]}), "must be a sequence of"),
    "design activation": (in_design("activation", "sin"), "The 'activation' parameter of NSGFS"),
    "no activation": (in_design("activation", None), "'_design' must be the design of a network"),
    "design images": (in_design("network", "unet"), r"needs image_shape=\(channels, height, w"),
    "no weights": (attribute("network_parameters_", {"dict": {}}), "has at least 96 weights. Got"),
    "weights": (attribute("network_parameters_", 3), "must be a dict of finite float32 arrays"),
    "weights of text": (
        attribute("network_parameters_", {"dict": {"layers": "x"}}),
        "must be a dict of finite float32 arrays",
    ),
    "other name": (
        in_record("fitted", "network_parameters_", "dict", "more", to={"array": WEIGHTS}),
        "The weights do not fit the network",
    ),
    "weights in float64": (
        tensor(WEIGHTS, lambda array: array.astype(np.float64)),
        "'network_parameters_' must be a dict of finite float32 arrays",
    ),
    "weights nan": (tensor(WEIGHTS, with_nan), "must be a dict of finite float32 arrays"),
    "weights shape": (tensor(WEIGHTS, lambda array: array.T), "weights do not fit the network"),
    "weights more": (
        tensor(WEIGHTS, lambda array: np.repeat(array, 2, axis=1)),
        "weights do not fit the network",
    ),
    "centre": (tensor("center_", lambda array: array[:2]), "'center_' must be a float64 array"),
    "centre dtype": (tensor("center_", np.float32), "'center_' must be a float64 array"),
    "centre nan": (tensor("center_", with_nan), "'center_' must be a float64 array"),
    "spread": (tensor("source_std_", np.negative), "finite number of at least 0 for each"),
    "rows": (tensor("target_sample_", lambda rows: rows[:, :2]), "with n_features_in_ columns"),
    "no rows": (tensor("target_sample_", lambda rows: rows[:0]), "'target_sample_' must be"),
    "rows of int": (tensor("source_sample_", lambda rows: rows.astype(int)), "or None. Got"),
    "rows nan": (tensor("target_sample_", with_nan), "'target_sample_' must be"),
    "tensor more": (lambda r, t: t.update(more=np.zeros(3)), NOT_WRITTEN),
    "tensor less": (lambda r, t: t.pop("center_"), "what is not there: {'array': 'center_'}"),
    "tensor twice": (attribute("center_", {"array": "source_mean_"}), NOT_WRITTEN),
    "array as scalar": (parameter("image_shape", {"scalar": "center_"}), NOT_WRITTEN),
    "tuple and more": (parameter("unet_channels", {"tuple": [1], "list": [2]}), NOT_WRITTEN),
    "float": (parameter("tol", {"float": "1e-3"}), "what is not there: {'float': '1e-3'}"),
    "version": (in_record("sknsgf", to="9" * 50), None),  # for the message of newer files only
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_could_mislead_or_fail_later_is_refused_despite_the_checksum(name, files, path):
    change, message = FORGERIES[name]
    data = forged(files["sampler"], change)
    if message is None:
        path.write_bytes(data)
        sknsgf.load(path)
    else:
        refused(data, path, message)


FORGED_PHASES = [
    (lambda r, t: r["fitted"]["network_parameters_"]["dict"].pop("transition"), "each phase of m"),
    (lambda r, t: r["fitted"]["loss_curves_"]["dict"].pop("straight"), "each phase of mode_"),
    (attribute("loss_curves_", {"dict": {"sinkhorn": [], "straight": [], "more": []}}), "phase"),
    (attribute("mode_", "consistent"), "'network_parameters_' must be a dict that holds"),
    (attribute("mode_", "fast"), "'mode_' must be a str among"),
    (attribute("loss_curves_", [1.0]), "'loss_curves_' must be a dict that holds a list"),
]


@pytest.mark.parametrize(("change", "message"), FORGED_PHASES)
def test_phases_that_do_not_belong_together_are_refused(change, message, files, path):
    refused(forged(files["paper"], change), path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_design("image_shape", {"tuple": [1, 2, 8]}), None),
        (in_design("image_shape", {"tuple": [1, 2, 9]}), "describes rows of 18 features"),
        (in_design("channels", {"tuple": []}), "The 'unet_channels' parameter must be"),
        (in_design("channels", {"tuple": [4, 4]}), "The weights do not fit the network"),
        (in_design("activation", "relu"), "'_design' must be the design of a network"),
    ],
)
def test_the_design_of_an_image_network_is_checked(change, message, files, path):
    data = forged(files["images"], change)
    if message is None:  # the same weights carry images of another shape as well
        path.write_bytes(data)
        sknsgf.load(path)
    else:
        refused(data, path, message)


@pytest.mark.parametrize("size", [10**5, 10**9, 10**30])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("sampler", "hidden_layer_sizes"),
        ("paper", "hidden_layer_sizes"),
        ("images", "channels"),
        ("paper_images", "channels"),
    ],
)
def test_no_network_is_built_that_is_larger_than_the_weights_at_hand(
    kind, field, size, files, path, monkeypatch
):
    for name in ("build_network", "build_transition_network"):
        monkeypatch.delattr(f"sknsgf._state.{name}")
    data = forged(files[kind], in_design(field, {"tuple": [size, size]}))
    refused(data, path, r"The fitted network has at least \d+ weights. Got \d+ of them")


@each_kind
def test_the_bound_on_the_weights_of_a_network_holds(kind, kept):
    design = kept[kind]._design
    n_weights = sum(weight.numel() for weight in design.build().parameters())
    assert 0 < design.fewest_weights() <= n_weights


def claiming(dtype, shape, *, stop):
    """Change to the header of a file: another claim about the tensor of the centre."""

    def change(header):
        start = header["center_"]["data_offsets"][0]
        header["center_"] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [start, stop if stop is None else start + stop],
        }

    return change


@pytest.mark.parametrize(
    "change",
    [
        claiming("F64", [2**60], stop=2**63 - 10_000),
        claiming("F64", [2**40, 2**40], stop=24),
        claiming("F64", [3], stop=25),
        claiming("F32", [3], stop=24),
        claiming("BF16", [12], stop=24),
        claiming("I64", [3], stop=24),
        claiming("F99", [3], stop=24),
        claiming("F64", [-3], stop=24),
        claiming("F64", "3", stop=24),
        lambda header: header.pop("center_"),
        lambda header: header.update(more={"dtype": "F64", "shape": [0], "data_offsets": [9, 9]}),
        lambda header: header["__metadata__"].update(more="text"),
        lambda header: header["__metadata__"].update(more=3),
    ],
)
def test_wrong_claims_about_tensors_are_refused_before_memory_is_taken(change, files, path):
    data = files["sampler"]
    header_end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:header_end])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = signed(from_header(text, data[header_end:]))
    tracemalloc.start()
    refused(data, path, f"Its tensors are malformed|{NOT_WRITTEN}|'center_' must be a float64")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_of_a_large_file_of_another_library_only_the_header_is_read(path):
    header = json.dumps({"a": {"dtype": "U8", "shape": [2**32], "data_offsets": [0, 2**32]}})
    path.write_bytes(from_header(header.encode()))
    os.truncate(path, 8 + len(header) + 2**32)
    tracemalloc.start()
    with pytest.raises(ValueError, match="sknsgf did not write"):
        sknsgf.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def check_forgeries(files, path, n_forgeries):
    """Refused, or opened as an estimator that can be saved: no other outcome."""
    random, n_opened = np.random.default_rng(1), 0
    for index in range(n_forgeries):
        data = files[list(files)[index % len(files)]]
        end = 8 + int.from_bytes(data[:8], "little")
        changed = bytearray(data)
        for place in random.integers(8, end, size=random.integers(1, 4)):
            changed[place] = random.choice(list(b'0123456789-.eE"[]{},:\\ anxT'))
        if b'sha256\\": \\"' not in changed:
            continue
        path.write_bytes(signed(bytes(changed)))
        try:
            opened = sknsgf.load(path)
        except ValueError:
            continue
        opened.save(path)
        n_opened += 1
    assert 0 < n_opened < n_forgeries


def test_a_random_forgery_is_refused_or_an_estimator(files, path):
    check_forgeries(files, path, 150)


@pytest.mark.slow
def test_each_of_many_random_forgeries_is_refused_or_an_estimator(files, path):
    check_forgeries(files, path, 2000)


@pytest.mark.endurance
def test_each_of_ten_thousand_random_forgeries_is_refused_or_an_estimator(files, path):
    check_forgeries(files, path, 10_000)


# skops


@each_kind
def test_skops_opens_an_estimator_with_the_documented_list(kind, kept):
    skops = pytest.importorskip("skops.io")
    page = (Path(__file__).parents[1] / "docs" / "persistence.md").read_text()
    data = skops.dumps(kept[kind])
    needed = skops.get_untrusted_types(data=data)
    assert type(kept[kind]).__name__ in " ".join(needed)
    assert all(f'"{name}"' in page for name in needed)
    opened = skops.loads(data, trusted=needed)
    rows = SAMPLES.get(kind, (X_source,))[0]
    assert_identical(opened.transform(rows), kept[kind].transform(rows))


def test_estimators_that_can_be_saved_are_those_of_the_package():
    names = set(_persistence.CLASSES)
    assert names == {name for name in sknsgf.__all__ if hasattr(getattr(sknsgf, name), "save")}
