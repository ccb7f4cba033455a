"""Fitted estimators as files that hold arrays and plain text, nothing that runs when opened.

A file is in the safetensors format: the arrays are its tensors, and the one entry ``sknsgf`` of its
metadata is a JSON record of everything else. The record's checksum covers every byte of the file.
"""

import json
import os
import secrets
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from reprlib import repr as short_repr

import numpy as np
import torch

from sknsgf import _distributed
from sknsgf._callbacks import ATTRIBUTES as CALLBACK_ATTRIBUTES
from sknsgf._state import NetworkDesign, check_state
from sknsgf._validation import check_path

FORMAT = 1
ENTRY = "sknsgf"  # of the metadata: the record
RECORD = {"sha256": str, "format": int, "sknsgf": str, "class": str, "params": dict, "fitted": dict}
NO_CHECKSUM = "0" * 64  # stands where the checksum will be, while it is computed
LENGTH_BYTES = 8  # of the number, at the start of a file, that says how long the header is
PLAIN = {type(None), bool, int, str}
DTYPES = {"bool", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
CLASSES = {}  # that can be saved, by name


def persistent(cls):
    """Class decorator: an estimator that can be saved, its attributes being those in its table."""
    CLASSES[cls.__name__] = cls
    return cls


def save(estimator, path):
    """Write a fitted estimator to a file, or nothing at all."""
    name = type(estimator).__name__
    check_path(path, f"{name}.save")
    if CLASSES.get(name) is not type(estimator):
        raise TypeError(
            f"save writes an {_either(CLASSES)}, of which {type(estimator)!r} is only a subclass. "
            "Use pickle or joblib."
        )
    data = _file_of(estimator)
    try:
        _estimator_in(data)
    except ValueError as error:
        raise ValueError(f"{name}.save would write what load refuses. {error}") from error
    if _distributed.is_first():
        write_file(path, data)


def load(path):
    """Open a fitted estimator from a file that its ``save`` method wrote.

    Parameters
    ----------
    path : str or os.PathLike
        Name of the file.

    Returns
    -------
    NSGFSampler or NSGFPlusPlus
        The estimator with all parameters and fitted attributes. On the same machine it returns the
        same as the one that was saved, bit by bit.

    Raises
    ------
    ValueError
        If the file is not exactly one that ``save`` wrote, or if its format is that of a newer
        version of sknsgf.
    OSError
        If the file cannot be read.

    Notes
    -----
    Nothing in a file is ever executed. The checksum in it protects against accidents, not against
    someone who computes it anew; whatever could go wrong later is therefore checked besides.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sknsgf
    >>> X_source = np.random.default_rng(0).normal(size=(100, 2))
    >>> flow = sknsgf.NSGFSampler(max_iter=50, random_state=0)
    >>> flow = flow.fit(X_source, X_source + [3.0, 1.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "flow.safetensors")
    ...     flow.save(path)
    ...     opened = sknsgf.load(path)
    >>> np.array_equal(opened.transform(X_source), flow.transform(X_source))
    True
    """
    check_path(path, "load")
    try:
        return _estimator_in(_read(path))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded. {error}") from error


# An estimator and the bytes of its file


def _file_of(estimator):
    """Bytes of the file of an estimator."""
    from safetensors.numpy import save as bytes_of

    text, tensors = _record_of(estimator, version("sknsgf"), NO_CHECKSUM)
    data = bytes_of(tensors, metadata={ENTRY: text})
    return _replace_checksum(data, NO_CHECKSUM, sha256(data).hexdigest())


def _estimator_in(data):
    """Estimator from the bytes of a file, which may be any bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as tensors_in

    text, record = _parse(data)
    checksum = record["sha256"]
    if sha256(_replace_checksum(data, checksum, NO_CHECKSUM)).hexdigest() != checksum:
        raise ValueError("It was damaged or changed: its bytes do not match its checksum.")
    try:
        tensors = tensors_in(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy does not know
        raise ValueError(f"Its tensors are malformed: {error!r}.") from error
    try:
        estimator = _restore(record, tensors)
        text_again, tensors_again = _record_of(estimator, record["sknsgf"], checksum)
    except ValueError:  # scikit-learn's, about a parameter, is a TypeError as well
        raise
    except (TypeError, RecursionError) as error:
        raise ValueError(f"Its record is malformed: {error}.") from error
    if text_again != text or tensors_again.keys() != tensors.keys():
        raise ValueError("It holds what save does not write.")
    return estimator


def _replace_checksum(data, old, new):
    """Bytes of a file with another checksum, which is the first value in a file."""
    return data.replace(old.encode(), new.encode(), 1)


def _parse(data):
    """Record of a file, as text and as a dict, from bytes that contain the header."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if not LENGTH_BYTES < end <= len(data):
        raise ValueError("It is empty, cut short or no safetensors file.")
    metadata = _json_object(data[LENGTH_BYTES:end], "header").get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(ENTRY), str):
        raise ValueError("It is a safetensors file that sknsgf did not write.")
    record = _json_object(metadata[ENTRY], "record")
    found = record.get("format")
    if type(found) is int and found > FORMAT:
        raise ValueError(
            f"It was written by a newer sknsgf: format {found} of version {record.get('sknsgf')}, "
            f"and this one, {version('sknsgf')}, reads up to format {FORMAT}. Upgrade sknsgf."
        )
    if {name: type(value) for name, value in record.items()} != RECORD or found != FORMAT:
        raise ValueError(f"Its record must hold {', '.join(RECORD)}, with format {FORMAT}.")
    if len(metadata) > 1:
        raise ValueError("It holds what save does not write.")
    return metadata[ENTRY], record


def _json_object(text, name):
    """Object that a JSON text stands for."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Its {name} is no JSON text: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"Its {name} is no JSON object.")
    return found


# An estimator and its record


def _record_of(estimator, writer, checksum):
    """Record of an estimator as JSON text, and the arrays that it refers to, by name."""
    parameters, tensors = estimator.get_params(deep=False), {}
    left_out = parameters.keys() | CALLBACK_ATTRIBUTES
    fitted = {name: value for name, value in vars(estimator).items() if name not in left_out}
    if unknown := fitted.keys() - estimator._fitted_attributes.keys():
        raise ValueError(
            f"{type(estimator).__name__}.save writes what fit sets. Got another attribute, "
            f"{min(unknown)!r}. Delete it, or use pickle or joblib."
        )
    record = {
        "sha256": checksum,  # the first value, for _replace_checksum
        "format": FORMAT,
        "sknsgf": writer,
        "class": type(estimator).__name__,
        "params": {name: _encode(value, name, tensors) for name, value in parameters.items()},
        "fitted": {name: _encode(value, name, tensors) for name, value in fitted.items()},
    }
    return json.dumps(record), tensors


def _restore(record, tensors):
    """Estimator of a record, checked as if its author meant ill."""
    cls = CLASSES.get(record["class"])
    if cls is None:
        raise ValueError(f"It must hold an {_either(CLASSES)}. Got {record['class']!r} instead.")
    parameters, fitted = (
        {name: _decode(value, tensors) for name, value in record[part].items()}
        for part in ("params", "fitted")
    )
    if different := parameters.keys() ^ cls._parameter_constraints.keys():
        raise ValueError(f"The parameter {min(different)!r} is missing or unknown.")
    if unknown := fitted.keys() - cls._fitted_attributes.keys():
        raise ValueError(f"The attribute {min(unknown)!r} is unknown.")
    estimator = cls(**parameters)
    estimator._validate_params()
    vars(estimator).update(fitted)
    check_state(estimator)
    try:
        estimator._flow("cpu", torch.float32)  # puts the weights into the networks
    except RuntimeError as error:
        raise ValueError(f"The weights do not fit the network: {error}") from error
    return estimator


def _encode(value, name, tensors):
    """JSON value for a value of one of a few types; arrays and NumPy's numbers go to tensors."""
    kind = type(value)
    if kind in PLAIN or (kind is float and isfinite(value)):
        return value
    if kind is float:
        return {"float": repr(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind is list:
        return _encode_items(value, name, tensors)
    if kind is tuple:
        return {"tuple": _encode_items(value, name, tensors)}
    if kind is dict and all(type(key) is str for key in value):
        items = {key: _encode(item, f"{name}/{key}", tensors) for key, item in value.items()}
        return {"dict": items}
    if kind is NetworkDesign:
        return {"design": _encode(value._asdict(), name, tensors)}
    if kind is np.str_:
        return {"str_": str(value)}
    is_array = kind in (np.ndarray, np.memmap)
    if is_array and value.dtype == object and value.ndim == 1:
        return {"objects": _encode_items(value, name, tensors)}
    if (is_array or isinstance(value, np.generic)) and value.dtype.name in DTYPES:
        tensors[name] = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"array" if is_array else "scalar": name}
    advice = "an int, or pickle or joblib" if name == "random_state" else "pickle or joblib"
    raise TypeError(f"save cannot write {name}={short_repr(value)}. Use {advice}.")


def _encode_items(values, name, tensors):
    return [_encode(value, f"{name}/{index}", tensors) for index, value in enumerate(values)]


def _decode(value, tensors):
    """Inverse of ``_encode``, for values from anywhere."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list(items):
            return [_decode(item, tensors) for item in items]
        case {"float": "inf" | "-inf" | "nan" as text}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(_decode(items, tensors))
        case {"design": fields}:
            return NetworkDesign(**_decode(fields, tensors))
        case {"dict": dict(items)}:
            return {key: _decode(item, tensors) for key, item in items.items()}
        case {"str_": str(text)}:
            return np.str_(text)
        case {"objects": list(items)}:
            objects = np.empty(len(items), dtype=object)
            objects[:] = _decode(items, tensors)
            return objects
        case {"array": str(name)} if name in tensors:
            return tensors[name]
        case {"scalar": str(name)} if name in tensors:
            return tensors[name][()]
        case _:
            raise ValueError(f"Its record refers to what is not there: {short_repr(value)}.")


def _either(names):
    return " or ".join(sorted(names))


# Bytes and the disk


def _read(path):
    """Bytes of a file; of another library's file, which may be large, only the header is read."""
    with open(path, "rb") as file:
        length = file.read(LENGTH_BYTES)
        size = os.fstat(file.fileno()).st_size
        header = length + file.read(min(int.from_bytes(length, "little"), size))
        _parse(header)
        return header + file.read()


def write_file(path, data):
    """Put bytes in the place of a file, all of them or none."""
    target = Path(os.path.realpath(path))  # through links, as any writing goes
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        with suppress(OSError):  # it is there only if something went wrong
            temporary.unlink()
