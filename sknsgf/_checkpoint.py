"""Checkpoints: a folder with what an unfinished fit has done so far.

It holds one file for each record: what fit this is, each chunk of simulated batches, each training.
A record is a dict of tensors and plain values. Its file starts with a checksum, and takes the place
of an older one at once when it is complete, so that a fit can die at any moment.
"""

import io
import os
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import gen_batches

from sknsgf import _distributed
from sknsgf._persistence import TEMPORARY, write_file
from sknsgf._torch_bridge import parameters_to_arrays, seed_from

SUFFIX = ".sknsgf"
ABOUT = "fit"  # the record that says which fit this is
CHECKSUM_BYTES = 32
HASHED_ENTRIES = 2**22  # entries of an array read at a time
# Parameters that may differ when a fit goes on. (The seed stands for `random_state`, and the
# weights for `network`.)
FREE = {"n_jobs", "verbose", "checkpoint", "checkpoint_every", "random_state", "network"}
FREE |= {"pool_directory"}


class Checkpoint:
    """The checkpoint of a fit, in a folder of records; without a folder, it keeps nothing.

    Sets `seed_`, which may be that of a fit that was begun before.
    """

    def __init__(self, estimator):
        self.folder = None if estimator.checkpoint is None else Path(estimator.checkpoint)
        self.every, self.done = estimator.checkpoint_every, {}
        about = self.load(ABOUT)
        if about is not None and estimator.random_state is None:
            estimator.seed_ = about["seed"]
        else:
            estimator.seed_ = seed_from(estimator.random_state)
        estimator.seed_ = _distributed.from_first(estimator.seed_)

    def claim(self, estimator, X_source, X_target, networks):
        """Make the folder that of this fit, or refuse one that is of another fit."""
        if self.folder is not None and _distributed.is_first():
            self._claim(estimator, X_source, X_target, networks)
        _distributed.from_first(None)  # the others wait for the folder

    def _claim(self, estimator, X_source, X_target, networks):
        about = {
            "fit": _description(estimator, X_source, X_target, networks),
            "seed": estimator.seed_,
        }
        kept = self.load(ABOUT)
        if kept is None:
            self._make_folder()
            self.save(ABOUT, about)
        elif kept["fit"] != about["fit"]:
            name = next(k for k, value in about["fit"].items() if kept["fit"].get(k) != value)
            raise ValueError(
                f"The checkpoint {os.fspath(self.folder)!r} is of another fit: {name} was "
                f"{kept['fit'].get(name)} and is {about['fit'][name]}. Go on with what was, or "
                "delete the folder, or name another one for this fit."
            )

    def load(self, name):
        """Record of this name, or None; only the first process reads."""
        if self.folder is None or not _distributed.is_first():
            return None
        path = self._path(name)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        checksum, content = data[:CHECKSUM_BYTES], data[CHECKSUM_BYTES:]
        if sha256(content).digest() != checksum:
            raise ValueError(
                f"The checkpoint file {os.fspath(path)!r} was damaged or changed. Delete it: the "
                "fit then does again what it holds."
            )
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def load_for_all(self, name):
        """The same in all processes."""
        return _distributed.from_first(self.load(name))

    def save(self, name, record):
        """Keep a record, in place of one of the same name."""
        if self.folder is None:
            return
        content = io.BytesIO()
        torch.save(_compact(record), content)
        content = content.getvalue()
        self.folder.mkdir(parents=True, exist_ok=True)  # on another machine than the first's
        write_file(self._path(name), sha256(content).digest() + content)

    def is_due(self, name, n_done, is_last):
        """Tell whether the record of a training should be kept now, after this many steps."""
        if self.folder is None or not _distributed.is_first():
            return False
        if is_last:
            return True
        if n_done - self.done.get(name, 0) < self.every:
            return False
        self.done[name] = n_done
        return True

    def forget(self, name):
        """Remove a record."""
        if self.folder is not None:
            self._path(name).unlink(missing_ok=True)

    def remove(self):
        """Remove all records, and the folder if nothing else is in it."""
        if self.folder is not None:
            about = self._path(ABOUT)
            for path in self._records():
                if path != about:
                    path.unlink(missing_ok=True)
            about.unlink(missing_ok=True)  # last: what is left until then is still a checkpoint
            with suppress(OSError):
                self.folder.rmdir()

    def _path(self, name):
        return self.folder / f"{name.replace(' ', '-')}{SUFFIX}"

    def _records(self):
        """Files of the folder that checkpoints make."""
        return [*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(TEMPORARY)]

    def _make_folder(self):
        """Make the folder; one that holds what is not of a checkpoint is refused."""
        with suppress(FileExistsError):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self.folder.is_dir() or set(self.folder.iterdir()) - set(self._records()):
            raise ValueError(
                f"The 'checkpoint' parameter must name a folder that is of a fit's checkpoint, "
                f"empty or not there. Got {os.fspath(self.folder)!r}, which is none of these."
            )


def _description(estimator, X_source, X_target, networks):
    """What makes two fits the same, by name, as text."""
    parameters = {
        name: repr(value)
        for name, value in sorted(estimator.get_params(deep=False).items())
        if name not in FREE
    }
    weights = sha256()
    for network in networks:
        weights.update(repr(network).encode())
        for array in parameters_to_arrays(network).values():
            weights.update(array.tobytes())
    versions = [f"{name} {version(name)}" for name in ("sknsgf", "torch", "numpy")]
    return {
        "the class": type(estimator).__name__,
        "the version": ", ".join(versions),
        **{f"the parameter {name}": value for name, value in parameters.items()},
        "the device": estimator.device_,
        "the seed": str(estimator.seed_),
        "the source": _fingerprint(X_source),
        "the target": _fingerprint(X_target),
        "the network": weights.hexdigest()[:16],
    }


def _fingerprint(X):
    """Shape, type and digest of rows, a block of them at a time."""
    if X is None:
        return "a normal law"
    digest = sha256()
    for block in gen_batches(len(X), max(1, HASHED_ENTRIES // X.shape[1])):
        digest.update(np.ascontiguousarray(X[block]))
    n_rows, n_features = X.shape
    return f"{n_rows} x {n_features} {X.dtype} ({digest.hexdigest()[:16]})"


def _compact(record):
    """The same record with tensors on the CPU that are parts of no larger ones."""
    if isinstance(record, torch.Tensor):
        return record.detach().cpu().clone()
    if isinstance(record, dict):
        return {name: _compact(value) for name, value in record.items()}
    if isinstance(record, list):
        return [_compact(value) for value in record]
    return record
