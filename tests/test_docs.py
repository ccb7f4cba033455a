"""Every Python block of the README and of the docs runs, and so do the examples."""

import re
from pathlib import Path

import pytest
import sklearn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where they save files
    namespace = {"__name__": "docs"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), namespace)


def test_the_skada_block_of_the_docs_beats_no_adaptation():
    with sklearn.config_context():  # skada turns routing on for the whole process
        pytest.importorskip("skada")
        page = (ROOT / "docs" / "domain_adaptation.md").read_text()
        first = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
        block = re.search(r"```{code-block} python\n(.*?)```", page, re.DOTALL)[1]
        namespace = {"__name__": "docs"}
        for code in (first, block):
            exec(compile(code, "domain_adaptation.md", "exec"), namespace)
    assert namespace["adapted"] > 0.95 > 0.75 > namespace["unadapted"]


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
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    divergence = dict(re.findall(r"(before|after|floor) +([\d.]+)", capsys.readouterr().out))
    assert float(divergence["floor"]) < float(divergence["after"]) < float(divergence["before"])


def test_the_digits_example_saves_its_picture(tmp_path, capsys):
    namespace = {"__name__": "plot_digits"}
    script = ROOT / "examples" / "plot_digits.py"
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    namespace.update(TRAINING_STEPS=200, N_BATCHES=4, N_GENERATED=200, EVALUATIONS=(1, 2, 5))
    namespace["main"](tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("by evaluations") == 3


def test_the_flow_example_saves_its_picture(tmp_path, capsys):
    namespace = {"__name__": "plot_flow"}
    script = ROOT / "examples" / "plot_flow.py"
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    namespace.update(N_ROWS=300, N_BATCHES=4, TRAINING_STEPS=150)
    namespace["main"](tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    source, first, second, _ = (float(line.split()[-1]) for line in lines[2:6])
    assert second < first < source


def test_the_adaptation_example_finds_that_the_naive_pipeline_fails():
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    plt.close("all")  # what other tests have left
    script = (ROOT / "examples" / "plot_domain_adaptation.py").read_text()
    for constant in ("N_FLOWS = 16", "TRAINING_STEPS = 2_000"):
        assert constant in script
    script = script.replace("N_FLOWS = 16", "N_FLOWS = 4").replace("STEPS = 2_000", "STEPS = 300")
    namespace = {"__name__": "plot_domain_adaptation"}
    exec(compile(script, "plot_domain_adaptation.py", "exec"), namespace)
    assert len(plt.get_fignums()) == 3
    plt.close("all")
    accuracy = namespace["accuracy"]
    assert accuracy["naive pipeline"] < accuracy["no adaptation"] + 0.05 < accuracy["forward"]
