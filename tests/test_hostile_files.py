"""Files made to harm: each is refused or is what it says, and nothing in it runs."""

import io
import json
import os
import pickle
import sys
import zipfile
from hashlib import sha256

import numpy as np
import pytest
import safetensors.numpy

import sknsgf
from sknsgf import NSGFPlusPlus, NSGFSampler

CHEAP = {
    "n_steps": 2,
    "n_flows": 4,
    "flow_batch_size": 64,
    "max_iter": 20,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
ESTIMATORS = NSGFSampler(**CHEAP), NSGFPlusPlus(**CHEAP, n_pairings=4, pairing_size=64)
# What would run, of Python's audit events; an import is one as well, when it is the first.
RUNNING = {"exec", "compile", "import", "os.system", "subprocess.Popen", "pickle.find_class"}
events = None  # a list while they are noted


def note(event, arguments):
    if events is not None and event in RUNNING:
        events.append((event, arguments))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bytes of a file of each estimator."""
    path, written = tmp_path_factory.mktemp("files") / "flow", []
    X = np.random.default_rng(0).normal(size=(70, 3))
    for estimator in ESTIMATORS:
        estimator.fit(X, 2 * X + 4).save(path)
        sknsgf.load(path)  # imports what the first loading imports
        written.append(path.read_bytes())
    sys.addaudithook(note)
    return written


class Canary:
    """Says so in the environment when it is unpickled."""

    def __reduce__(self):
        return os.putenv, ("SKNSGF_CANARY", "dead")


def zipped(name, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def with_length(data, length):
    return length.to_bytes(8, "little") + data[8:]


def with_header(data, header):
    return (
        len(header).to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]
    )


CANARY = pickle.dumps(Canary())
UNSIGNED = [
    lambda data, random: CANARY,
    lambda data, random: CANARY + data,
    lambda data, random: data + CANARY,
    lambda data, random: with_header(data, CANARY),
    lambda data, random: zipped("data.pkl", CANARY),
    lambda data, random: data + zipped("data.pkl", CANARY),
    lambda data, random: zipped("flow.safetensors", data),
    lambda data, random: with_length(data, int(2.0 ** random.uniform(0, 63))),
    lambda data, random: with_length(data, 2**64 - 1),
    lambda data, random: with_header(data, b"[" * random.integers(1, 200_000)),
    lambda data, random: with_header(data, b'{"a":' * random.integers(1, 50_000)),
    lambda data, random: with_header(data, b"9" * random.integers(1, 50_000)),
    lambda data, random: data[: random.integers(len(data))],
    lambda data, random: data[random.integers(1, len(data)) :],
    lambda data, random: data + data,
]
NOT_READ = {("sha256",), ("sknsgf",)}  # written anew by signing; for the message of newer files
VALUES = [
    *(None, True, -1, 0, 1, 10**30, -1e308, 5e-324, float("inf"), float("nan"), "", "nan", "\0"),
    *("__import__('os').abort()", "../../etc/passwd", "cuda:0", "a" * 10_000, [], {}, [[[]]]),
    *({"float": "nan"}, {"tuple": []}, {"dict": {"__class__": 1}}, {"array": "center_"}),
    *({"scalar": "scale_"}, {"objects": [None]}, {"design": {"dict": {}}}, {"str_": "mlp"}),
]


def places(value, place=()):
    """Way to each value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*place, key)
        if isinstance(item, dict | list):
            yield from places(item, (*place, key))


def signed(data, record):
    """File with another record and the checksum that belongs to it."""
    tensors, record["sha256"] = safetensors.numpy.load(data), "0" * 64
    unsigned = safetensors.numpy.save(tensors, metadata={"sknsgf": json.dumps(record)})
    return unsigned.replace(b"0" * 64, sha256(unsigned).hexdigest().encode(), 1)


def changed_record(data, random):
    """File in whose record one value is another."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    record = json.loads(header["__metadata__"]["sknsgf"])
    found = [place for place in places(record) if place not in NOT_READ]
    *way, last = found[random.integers(len(found))]
    inner = record
    for key in way:
        inner = inner[key]
    inner[last] = VALUES[random.integers(len(VALUES))]
    return signed(data, record)


def check(files, path, n_files):
    global events
    random, n_refused = np.random.default_rng(0), 0
    for index in range(n_files):
        data = files[index % len(files)]
        change = UNSIGNED[index // 2 % len(UNSIGNED)] if index % 4 < 2 else changed_record
        changed = change(data, random)
        path.write_bytes(changed)
        events, opened = [], None
        try:
            opened = sknsgf.load(path)
        except ValueError:
            n_refused += 1
        finally:
            seen, events = events, None
        assert seen == []
        if opened is not None:  # nothing was added, left out or put right in silence
            opened.save(path)
            assert path.read_bytes() == changed
            assert change is changed_record
    assert 0.5 * n_files < n_refused < n_files


def test_a_file_made_to_harm_is_refused_or_what_it_says_and_runs_nothing(files, path):
    check(files, path, 300)


@pytest.mark.endurance
def test_each_of_many_files_made_to_harm_is_refused_or_what_it_says(files, path):
    check(files, path, 1500)


@pytest.mark.endurance
def test_each_of_ten_thousand_files_made_to_harm_is_refused_or_what_it_says(files, path):
    check(files, path, 10_000)


def test_the_canary_sings_where_a_pickle_is_opened():
    global events
    if events is None:
        sys.addaudithook(note)
    events = []
    pickle.loads(CANARY)
    seen, events = events, None
    assert "pickle.find_class" in [event for event, _ in seen]
    os.unsetenv("SKNSGF_CANARY")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"
