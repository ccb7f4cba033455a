"""Checkpoints: a folder with what an unfinished fit has done so far.

It holds one file for each record: what fit this is, each chunk of simulated batches, each training.
A record is a dict of tensors and plain values. Its file starts with the key of the fit and a
checksum, and takes the place of an older one at once when it is complete, so that a fit can die at
any moment.
"""

import io
import logging
import os
import re
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import gen_batches

from sknsgf import _distributed
from sknsgf._persistence import write_file
from sknsgf._torch_bridge import parameters_to_arrays, seed_from
from sknsgf._validation import check_same_parameters

logger = logging.getLogger(__name__)

SUFFIX = ".sknsgf"
ABOUT = "fit"  # the record that says which fit this is
DIGEST_BYTES = 32
NO_KEY = bytes(DIGEST_BYTES)
RECORD = re.compile(  # names of files that checkpoints make, and of files being written
    r"(fit|(straight-|transition-)?training|(simulating-flows|pairing)(-held-out)?-(\d+|worst))\.sknsgf"
    r"|\.[0-9a-f]{16}\.tmp"
)
HASHED_ENTRIES = 2**22  # entries of an array read at a time
# Parameters that may differ when a fit goes on. (The seed stands for `random_state`, and the
# weights for `network`.)
FREE = {"n_jobs", "verbose", "checkpoint", "checkpoint_every", "random_state", "network"}
FREE |= {"pool_directory", "device"}


class Checkpoint:
    """The checkpoint of a fit, in a folder of records; without a folder, it keeps nothing.

    Records carry the key of their fit: those of another one are as good as not there.
    """

    def __init__(self, estimator):
        self.folder = None if estimator.checkpoint is None else Path(estimator.checkpoint)
        self.every, self.key = estimator.checkpoint_every, NO_KEY

    def seed(self, random_state):
        """Seed of the fit: that of an unfinished one, where ``random_state`` is None."""
        about = self.load(ABOUT) if random_state is None else None
        seed = about["seed"] if about else seed_from(random_state)
        return _distributed.from_first(seed)

    def claim(self, estimator, X_source, X_target, networks):
        """Make the folder that of this fit, or refuse one that is of another fit."""
        parameters = _parameters(estimator)
        check_same_parameters(estimator, parameters, _distributed.from_first(parameters))
        if self.folder is not None:
            fit = parameters | _description(estimator, X_source, X_target, networks)
            if _distributed.is_first():
                self._claim({"fit": fit, "seed": estimator.seed_})
            self.key = sha256(repr(_distributed.from_first(fit)).encode()).digest()
            self.folder.mkdir(parents=True, exist_ok=True)  # on another machine than the first's

    def _claim(self, about):
        kept = self.load(ABOUT)
        if kept is None:
            self._make_folder()
            self.save(ABOUT, about)
            return
        if kept["fit"] != about["fit"]:
            name = next(k for k, value in about["fit"].items() if kept["fit"].get(k) != value)
            raise ValueError(
                f"The checkpoint {os.fspath(self.folder)!r} is of another fit: {name} was "
                f"{kept['fit'].get(name)} and is {about['fit'][name]}. Go on with what was, or "
                "delete the folder, or name another one for this fit."
            )
        logger.info("Going on from the checkpoint %s", self.folder)

    def load(self, name):
        """Record of this name, or None; only the first process reads."""
        if self.folder is None or not _distributed.is_first():
            return None
        path = self._path(name)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        key, checksum = data[:DIGEST_BYTES], data[DIGEST_BYTES : 2 * DIGEST_BYTES]
        content = data[2 * DIGEST_BYTES :]
        if sha256(key + content).digest() != checksum:
            raise ValueError(
                f"The checkpoint file {os.fspath(path)!r} was damaged or changed. Delete "
                + ("the folder." if name == ABOUT else "it: the fit then does again what it holds.")
            )
        if key != (NO_KEY if name == ABOUT else self.key):
            return None
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
        content, key = content.getvalue(), NO_KEY if name == ABOUT else self.key
        write_file(self._path(name), key + sha256(key + content).digest() + content)

    def is_due(self, n_steps, is_last):
        """Tell whether to keep a training, so many steps after the last time."""
        keeps = self.folder is not None and _distributed.is_first()
        return keeps and (is_last or n_steps >= self.every)

    def forget(self, name):
        """Remove a record."""
        if self.folder is not None:
            with suppress(OSError):  # another process may have done so
                self._path(name).unlink()

    def remove(self):
        """Remove all records, and the folder if nothing else is in it."""
        _distributed.wait_for_all()
        if self.folder is not None:
            with suppress(OSError):  # the fit is there: nothing may spoil it now
                for path in self._records():
                    if path != self._path(ABOUT):
                        path.unlink(missing_ok=True)
                self.forget(ABOUT)  # last: what is left until then is still a checkpoint
                self.folder.rmdir()
        _distributed.wait_for_all()  # the next fit may make the folder again

    def _path(self, name):
        return self.folder / f"{name.replace(' ', '-')}{SUFFIX}"

    def _records(self):
        """Files of the folder that checkpoints make."""
        names = os.listdir(self.folder)
        return [self.folder / name for name in names if RECORD.fullmatch(name)]

    def _make_folder(self):
        """Make the folder; one that holds what is not of a checkpoint is refused."""
        with suppress(FileExistsError):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self.folder.is_dir() or len(self._records()) < len(os.listdir(self.folder)):
            raise ValueError(
                f"The 'checkpoint' parameter must name a folder that is of a fit's checkpoint, "
                f"empty or not there. Got {os.fspath(self.folder)!r}, which is none of these."
            )


def _parameters(estimator):
    """What of a fit is the same in all its processes and all its lives, by name, as text."""
    return {
        "the class": type(estimator).__name__,
        **{
            f"the parameter {name}": repr(_plain(value))
            for name, value in sorted(estimator.get_params(deep=False).items())
            if name not in FREE
        },
        "the kind of device": torch.device(estimator.device_).type,
        "the seed": str(estimator.seed_),
    }


def _description(estimator, X_source, X_target, networks):
    """What else makes two fits the same."""
    weights = sha256()
    for network in networks:
        weights.update(repr(network).encode())
        for array in parameters_to_arrays(network).values():
            weights.update(array.tobytes())
    packages = "sknsgf", "torch", "numpy", "scipy", "scikit-learn"  # which decide what comes out
    versions = [f"{name} {version(name)}" for name in packages]
    shares = _distributed.n_processes() if _distributed.shares_batches() else 1
    return {
        "the version": ", ".join(versions),
        "the number of shares of a batch": str(shares),
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


def _plain(value):
    """A number of NumPy's, as a parameter may be, as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _compact(record):
    """The same record with tensors on the CPU that are parts of no larger ones."""
    if isinstance(record, torch.Tensor):
        return record.detach().cpu().clone()
    if isinstance(record, dict):
        return {name: _compact(value) for name, value in record.items()}
    if isinstance(record, list):
        return [_compact(value) for value in record]
    return _plain(record)  # torch opens no other number
