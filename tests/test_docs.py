"""Every Python block of the README and of the docs runs, and so do the examples."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import matplotlib as mpl
import pytest
import sklearn

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").glob("plot_*.py"))

# Constants of the scripts for the tests; a script that is not here runs with its own.
SMALLER = {
    "plot_blur_and_steps": {
        "BLURS": (0.1, 0.3, 0.5, 1.0),
        "STEPS": (1, 5),
        "CURVE_STEPS": (1, 5),
        "N_COMPARED": 256,
        "N_FLOWS": 4,
        "TRAINING_STEPS": 200,
    },
    "plot_cells": {
        "N_CONTROL": 800,
        "N_TREATED": 700,
        "N_HELD_OUT": 400,
        "N_FLOWS": 4,
        "TRAINING_STEPS": 300,
    },
    "plot_digits": {
        "TRAINING_STEPS": 200,
        "N_BATCHES": 4,
        "N_GENERATED": 200,
        "EVALUATIONS": (1, 2, 5),
    },
    "plot_domain_adaptation": {"N_FLOWS": 4, "TRAINING_STEPS": 300},
    "plot_first_flow": {"N_SOURCE": 600, "N_TARGET": 500, "N_FLOWS": 4, "TRAINING_STEPS": 200},
    "plot_flow": {"N_ROWS": 300, "N_BATCHES": 4, "TRAINING_STEPS": 150},
    "plot_inverse": {
        "N_ROWS": 500,
        "N_RETURNING": 100,
        "STEPS": (2, 10),
        "N_BATCHES": 4,
        "TRAINING_STEPS": 150,
    },
    "plot_model_selection": {
        "N_SOURCE": 300,
        "N_TARGET": 200,
        "N_HELD_OUT": 300,
        "BLURS": (0.3, 3.0),
        "SIZES": (4, 32),
        "TRAINING_STEPS": 40,
        "FINAL_STEPS": 200,
    },
    "plot_one_sample": {
        "N_ROWS": 300,
        "N_DRAWS": 2,
        "COMPONENTS": (5,),
        "BANDWIDTHS": (0.1, 1.6),
        "N_FLOWS": 2,
        "TRAINING_STEPS": 100,
        "MANY": 12,
    },
}

# Measures that a script prints, from the least to the greatest.
IN_ORDER = {
    "plot_blur_and_steps": ("floor", "blur 0.1", "blur 1"),
    "plot_cells": ("flow", "one shift", "no change"),
    "plot_domain_adaptation": ("naive pipeline", "forward"),
    "plot_first_flow": ("floor", "after", "before"),
    "plot_flow": ("after the second phase", "after the first phase", "source"),
    "plot_inverse": ("rk4", "midpoint", "euler"),
    "plot_model_selection": ("best, trained longer", "best of the grid", "worst of the grid"),
}


def packages_of(block):
    """Packages that a block imports."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def blocks_of(page):
    """Python blocks of a page; a ``{code-block}`` only where the packages it imports are."""
    fences = r"```(python|{code-block} python)\n(.*?)```"
    for kind, block in re.findall(fences, page.read_text(), re.DOTALL):
        roots = {name.partition(".")[0] for name in packages_of(block)}
        if kind == "python" or all(map(find_spec, roots)):
            yield block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where they save files
    namespace = {"__name__": "docs"}
    for block in blocks_of(page):
        if "sklearn.callback" in block:
            pytest.importorskip("sklearn.callback")  # scikit-learn 1.9
        with sklearn.config_context():  # put back what the block sets
            exec(compile(block, page.name, "exec"), namespace)
    plt.close("all")


def test_the_readme_names_the_commands_that_ci_runs():
    commands = (ROOT / "README.md").read_text()
    assert "-m pytest -q" in commands
    assert 'python" -m pytest -q' in (ROOT / ".ci" / "run").read_text()
    assert "requirements/constraints-cpu.txt" in commands


def test_the_quickstart_saves_its_picture(tmp_path, monkeypatch, capsys):
    namespace = {"__name__": "quickstart"}
    script = ROOT / "examples" / "quickstart.py"
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    flow = namespace["NSGFSampler"]
    namespace["NSGFSampler"] = lambda **kw: flow(**kw | {"n_flows": 2, "max_iter": 200})
    namespace.update(N_FIT=2_000, N_COMPARE=500)
    namespace["main"](tmp_path / "picture.png")
    plt.close("all")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    divergence = dict(re.findall(r"(before|after|floor) +([\d.]+)", capsys.readouterr().out))
    assert float(divergence["floor"]) < float(divergence["after"]) < float(divergence["before"])


def with_constants(source, constants):
    """Syntax tree of a script whose constants, assigned at its top level, have other values."""
    tree, left = ast.parse(source), dict(constants)
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in left:
            value = left.pop(node.targets[0].id)
            node.value = ast.parse(repr(value), mode="eval").body
    assert not left, f"constants that the script does not have: {list(left)}"
    return ast.fix_missing_locations(tree)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_of_the_gallery_draws_and_prints_what_it_says(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    tree = with_constants(script.read_text(), SMALLER.get(script.stem, {}))
    try:
        with sklearn.config_context():  # put back what the script sets
            exec(compile(tree, str(script), "exec"), {"__name__": "__main__"})
        assert plt.get_fignums()
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    finally:
        plt.close("all")
    assert not list(tmp_path.iterdir())  # a script of the gallery saves nothing
    printed = capsys.readouterr().out
    measures = [
        float(re.search(rf"^ *{name} .*?(\d\.[\de.-]+)", printed, re.MULTILINE)[1])
        for name in IN_ORDER.get(script.stem, ())
    ]
    assert measures == sorted(measures)
