"""The import arrows of the package and the calls it never makes, read from its source."""

import ast
import re
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "sknsgf"

# What a module may import of the package; the first pattern that fits decides, a module that none
# fits is free, and a package may always import what lies inside it.
ARROWS = {
    "_adapter": ["_validation"],
    "_nsgf*": [
        *("_base", "_training", "_simulation", "_minibatches", "_checkpoint"),
        *("_persistence", "_state", "_callbacks"),
        *("_validation", "_torch_bridge", "flow", "flow.*"),
    ],
    "_training": [
        *("_base", "_minibatches", "_distributed", "_validation", "_torch_bridge"),
        *("flow", "flow.*"),
    ],
    "_simulation": [
        *("_minibatches", "_distributed", "_validation", "_torch_bridge"),
        *("flow", "flow.*"),
    ],
    "_minibatches": ["_torch_bridge"],
    "_checkpoint": ["_distributed", "_persistence", "_torch_bridge", "_validation"],
    "_distributed": [],
    "plotting.*": [
        *("plotting._drawing", "_nsgf_plus_plus", "_base", "_validation", "_torch_bridge"),
        "flow.regression",
    ],
    "_base": [
        *("_validation", "_torch_bridge", "_persistence", "_callbacks", "_file_rows"),
        *("metrics", "flow.module"),
    ],
    "_persistence": ["_state", "_callbacks", "_validation", "_distributed"],
    "_callbacks": [],
    "_file_rows": [],
    "_state": ["_validation", "flow.external", "flow.networks"],
    "flow.trajectories": ["flow.sinkhorn"],
    "flow.external": ["flow.sinkhorn"],
    "flow.paths": ["flow.sinkhorn", "flow.kernels"],
    "flow.phases": ["flow.integration"],
    "flow.regression": ["flow.recording"],
    "flow.sinkhorn": ["flow.kernels"],
    "flow.networks.*": ["flow.networks.*"],
    "flow": [],
    "flow.*": [],
}
FOREIGN_TO_FLOW = {"numpy", "scipy", "sklearn", "joblib", "threadpoolctl"}
IMPORTED_LAZILY = {
    "geomloss": {"flow.external"},
    "matplotlib": {"plotting._drawing"},
    "ot": {"flow.external", "flow.paths", "metrics"},
    "safetensors": {"_persistence"},
}
NEVER_USED = [
    "print",
    "numpy.random.seed",
    "numpy.random.set_state",
    "torch.seed",
    "torch*.manual_seed*",
    "torch*.set_rng_state*",
    "torch*.fork_rng",
    "torch.set_num_*threads",
    "torch.set_default_*",
    "torch.set_deterministic*",
    "torch.use_deterministic_algorithms",
    "torch.backends.*.deterministic",
    "torch.default_generator*",
    "torch.cuda.default_generators*",
]
# A user's network draws its weights from the default generators; they are put back as they were.
EXCEPTIONS = {
    ("flow.networks.build", "_layer_generators"): {
        "torch.default_generator",
        "torch.cuda.default_generators",
    }
}


class Import(NamedTuple):
    line: int
    bound: str  # the name it is known by in the file
    name: str  # the full dotted name of what is imported
    lazy: bool  # whether it waits inside a function


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "sknsgf"


def imports_of(path, tree):
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside_functions = {inner for function in functions for inner in ast.walk(function)}
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            prefix = ()
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else ()
            prefix += (node.module,) if node.module else ()
        else:
            continue
        for alias in node.names:
            name = ".".join((*prefix, alias.name))
            yield Import(node.lineno, alias.asname or alias.name, name, node in inside_functions)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text("utf-8"), path) for module, path in FILES.items()}
IMPORTS = {module: list(imports_of(FILES[module], tree)) for module, tree in TREES.items()}
EVERY_IMPORT = [(module, found) for module, imports in IMPORTS.items() for found in imports]


def where(module, line):
    return f"{FILES[module].relative_to(PACKAGE.parent)}:{line}"


def root(name):
    return name.partition(".")[0]


def module_of(name):
    """Return the module of the package that a dotted name lies in, None for another library's."""
    if root(name) != "sknsgf":
        return None
    name = name.removeprefix("sknsgf.")
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or "sknsgf"


def may_import(module, imported):
    if module == "sknsgf" or imported.startswith(module + "."):
        return True
    allowed = next((row for pattern, row in ARROWS.items() if fnmatchcase(module, pattern)), ["*"])
    return any(fnmatchcase(imported, pattern) for pattern in allowed)


def dotted(node):
    """Return the source of a name or a chain of attributes, None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return None


def used_names(module):
    """Yield the line and the full dotted name of everything a module imports or mentions."""
    known_as = {found.bound: found.name for found in IMPORTS[module]}
    for found in IMPORTS[module]:
        yield found.line, found.name
    for node in ast.walk(TREES[module]):
        if name := dotted(node):
            first, dot, rest = name.partition(".")
            yield node.lineno, known_as.get(first, first) + dot + rest


def test_there_is_source_to_read():
    assert "sknsgf" in FILES


def test_every_import_follows_the_arrows():
    against = [
        f"{where(module, found.line)} imports {imported}"
        for module, found in EVERY_IMPORT
        if (imported := module_of(found.name)) and not may_import(module, imported)
    ]
    assert against == []


def test_imports_make_no_cycle():
    graph = {
        module: {imported for found in imports if (imported := module_of(found.name))}
        for module, imports in IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("These modules import one another: " + ", ".join(error.args[1]))


def test_flow_imports_nothing_of_the_array_world():
    against = [
        f"{where(module, found.line)} imports {found.name}"
        for module, found in EVERY_IMPORT
        if root(module) == "flow" and root(found.name) in FOREIGN_TO_FLOW
    ]
    assert against == []


@pytest.mark.parametrize("library", IMPORTED_LAZILY)
def test_a_lazy_library_is_imported_only_in_its_files(library):
    against = [
        f"{where(module, found.line)} imports {found.name}"
        for module, found in EVERY_IMPORT
        if root(found.name) == library and module not in IMPORTED_LAZILY[library]
    ]
    assert against == []


@pytest.mark.parametrize("library", IMPORTED_LAZILY)
def test_a_lazy_library_is_imported_only_inside_functions(library):
    against = [
        f"{where(module, found.line)} imports {found.name}"
        for module, found in EVERY_IMPORT
        if root(found.name) == library and not found.lazy
    ]
    assert against == []


def test_private_parts_of_scikit_learn_are_imported_only_in_validation():
    against = [
        f"{where(module, found.line)} imports {found.name}"
        for module, found in EVERY_IMPORT
        if root(found.name) == "sklearn"
        and re.search(r"\._(?!_)", found.name)
        and module != "_validation"
    ]
    assert against == []


def test_callbacks_of_scikit_learn_are_imported_only_in_their_file():
    against = [
        f"{where(module, found.line)} imports {found.name}"
        for module, found in EVERY_IMPORT
        if found.name.startswith("sklearn.callback") and module != "_callbacks"
    ]
    assert against == []


def function_at(module, line):
    """Return the name of the innermost function around a line, None outside of functions."""
    around = [
        node
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno
    ]
    return max(around, key=lambda node: node.lineno).name if around else None


def test_nothing_is_printed_and_no_global_state_is_set():
    against = [
        f"{where(module, line)} uses {name}"
        for module in FILES
        for line, name in used_names(module)
        if any(fnmatchcase(name, pattern) for pattern in NEVER_USED)
        and name not in EXCEPTIONS.get((module, function_at(module, line)), ())
    ]
    assert against == []


def test_the_one_seeding_of_the_default_generators_puts_them_back():
    (seeding,) = (
        node
        for node in ast.walk(TREES["flow.networks.build"])
        if isinstance(node, ast.FunctionDef)
        and any(dotted(inner) == "generator.manual_seed" for inner in ast.walk(node))
    )
    assert seeding.name == "seeded_layers"
    (guard,) = (node for node in ast.walk(seeding) if isinstance(node, ast.Try))
    restored = {dotted(node) for part in guard.finalbody for node in ast.walk(part)}
    assert "_set_states" in restored


def test_no_assert_statement_guards_the_package():
    against = [
        where(module, node.lineno)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert against == []
