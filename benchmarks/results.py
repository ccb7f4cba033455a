"""Where benchmarks put their results: csv files, and tables in the docs generated from them."""

import csv
import math
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PACKAGES = ("sknsgf", "torch", "numpy", "scikit-learn", "POT", "geomloss", "ott-jax", "jax")


def summary(values, digits=None):
    """Mean and, of several values, standard deviation; None does not count, nothing is blank.

    Without a number of `digits` after the point there are three of the mean's in all.
    """
    values = [value for value in values if value is not None]
    if not values:
        return ""
    if digits is None:
        digits = max(0, 2 - math.floor(math.log10(max(abs(mean(values)), 1e-3))))
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def processor():
    """Name of the processor, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"model name\s*: (.+)", info.read_text())
        if match:
            return match.group(1)
    return platform.processor() or platform.machine()


def versions():
    """Versions of the packages that took part."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def read_runs(name):
    """Runs that were kept; what is no number stays a string, or is None where it is empty."""
    path = _runs_path(name)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def add_run(name, run, columns):
    """Keep a run, so that an interrupted benchmark can go on; columns that it lacks stay empty."""
    path = _runs_path(name)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(run)


def _runs_path(name):
    return RESULTS / f"{name}_runs.csv"


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text or None


def publish(name, rows, command, gpu=None):
    """Write rows (dicts of strings and numbers) to ``results/name.csv`` and to the docs' table.

    The machine is named by its processor, and by the name of a GPU that took part.
    """
    machine = f"{processor()}, {gpu}" if gpu else processor()
    origin = f"{command}; {machine}; Python {platform.python_version()}, {versions()}"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        file.write(f"# {origin}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    table = "\n".join([*lines, "", f"`{command}` on {machine}; {versions()}."])
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = PAGE.read_text()
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text(f"{head}{begin}\n{table}\n{end}{tail}")
    print(f"written: {path} and {PAGE}")
