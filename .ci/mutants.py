#!/usr/bin/env python
"""Run a random sample of mutants of each file of sknsgf/flow against that file's own tests.

Needs the test dependencies and cosmic-ray. A mutant, one small change to the code, is killed if a
test fails, and survives if all pass. Survivors are printed as they are found, and the score of
each file at its end:

    python .ci/mutants.py --per-file 40 [FILE ...]
"""

import argparse
import ast
import difflib
import importlib.util
import os
import random
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sknsgf" / "flow"
TESTED_BY = {"kernels.py": "test_sinkhorn.py"}  # of a file that has no tests of its own


class Mutated(MetaPathFinder, Loader):
    """Importer of one module from a changed text."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def find_spec(self, name, path, target=None):
        """Way to the module, for its name only."""
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def exec_module(self, module):
        """Run the text as the module."""
        exec(compile(self.text, self.path, "exec"), module.__dict__)


def meaning(text):
    """Code without annotations and docstrings, which say nothing to the machine."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def places(text):
    """Every place where an operator of cosmic-ray can change a text: (operator, occurrence)."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(text)))
    for name in sorted(operator_names()):
        if "Variable" not in name and "RemoveDecorator" not in name:
            operator = get_operator(name)()
            n_places = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            yield from ((operator, occurrence) for occurrence in range(n_places))


def sample_of_mutants(text, size, random):
    """Up to so many different changes to a text."""
    from cosmic_ray.mutating import mutate_code

    candidates, seen = list(places(text)), {meaning(text)}
    random.shuffle(candidates)
    for operator, occurrence in candidates:
        changed = mutate_code(text, operator, occurrence)
        try:
            different = meaning(changed)
        except SyntaxError:
            continue
        if different not in seen:
            seen.add(different)
            yield changed
        if len(seen) > size:
            return


def tests_pass(path, text, tests, limit):
    """Run the tests of a file with a text in its place, in a child that has imported the rest."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(os.devnull, "r+") as nothing:
            for stream in (0, 1, 2):
                os.dup2(nothing.fileno(), stream)
        import pytest

        sys.meta_path.insert(0, Mutated(path, text))
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        os._exit(int(pytest.main([*options, str(tests)])))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)  # it runs without end
    os.waitpid(child, 0)
    return False


def check(path, per_file, seed):
    """Print the survivors of a sample of the mutants of a file and how many were killed."""
    text, name = path.read_text(), path.relative_to(PACKAGE)
    tests = ROOT / "tests" / "flow" / name.parent / TESTED_BY.get(path.name, f"test_{path.name}")
    start = time.monotonic()
    if not tests_pass(path, text, tests, 600):
        sys.exit(f"The tests of {name} fail without a mutant.")
    limit = 10 + 4 * (time.monotonic() - start)
    n_mutants = killed = 0
    for changed in sample_of_mutants(text, per_file, random.Random(f"{seed} {name}")):
        n_mutants += 1
        if tests_pass(path, changed, tests, limit):
            lines = difflib.unified_diff(text.split("\n"), changed.split("\n"), n=0, lineterm="")
            print(f"survived: {name}", *list(lines)[2:], sep="\n    ", flush=True)
        else:
            killed += 1
    print(f"{name}: {killed} of {n_mutants} killed", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="of sknsgf/flow; all if none is named")
    parser.add_argument("--per-file", type=int, default=40, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import geomloss  # noqa: F401  what every child would import anew
    import ot  # noqa: F401
    import sklearn.utils  # noqa: F401
    import torch  # noqa: F401

    sys.path.insert(0, str(ROOT))
    sys.dont_write_bytecode = True
    files = [PACKAGE / name for name in options.files] or sorted(PACKAGE.rglob("*.py"))
    for path in files:
        if path.name != "__init__.py":
            check(path, options.per_file, options.seed)


if __name__ == "__main__":
    main()
