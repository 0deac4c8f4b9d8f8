"""The package's structure: rooms on floors, imports only downwards, no circles, functions that fit a screen."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "whisper_quran"
# From the ground up. A module imports from its own room and from floors below, never from the same floor or above.
FLOORS = [
    {"runtime"},
    {"config"},
    {"checkpoints"},
    {"data"},
    {"decoding", "download"},
    {"evaluation"},
    {"training", "recognition"},
    {"demo", "recognize"},
    {"__init__"},
]
LONGEST_FUNCTION, MOST_PARAMETERS = 60, 6


def modules() -> dict[str, ast.Module]:
    """The package's modules by their dotted name within it."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in names.items()}


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules of the package that the module ``name`` imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = name.split(".")[: -node.level]
            for target in (alias.name for alias in node.names):
                folder = ".".join([*package, *(node.module or "").split(".")]).strip(".")
                candidates = (f"{folder}.{target}".strip("."), folder, f"{folder}.__init__", "__init__")
                yield next(candidate for candidate in candidates if candidate in MODULES)


MODULES = modules()


def test_imports_go_downwards_only():
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    upwards = [
        f"{name} imports {target}"
        for name, tree in MODULES.items()
        for target in imports(name, tree)
        if name.split(".")[0] != target.split(".")[0] and floor[target.split(".")[0]] >= floor[name.split(".")[0]]
    ]
    assert upwards == []


def test_no_module_imports_itself_through_others():
    TopologicalSorter({name: set(imports(name, tree)) for name, tree in MODULES.items()}).prepare()


def test_a_newcomer_finds_few_rooms():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 14


def test_functions_fit_a_screen_and_take_few_arguments():
    long = []
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                parameters = [a.arg for a in arguments if a.arg not in ("self", "cls")]
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION or len(parameters) > MOST_PARAMETERS:
                    long.append(f"{module}.{node.name}: {lines} lines, {len(parameters)} parameters")
    assert long == []
