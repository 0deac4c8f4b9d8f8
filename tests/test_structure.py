"""The package's structure: packages in layers, imports only downwards, no circles."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "whisper_quran"
# From the bottom up. A module imports from its own package and from layers below, never from the same layer or above.
LAYERS = [
    {"runtime"},
    {"config"},
    {"checkpoints"},
    {"data"},
    {"decoding", "download"},
    {"evaluation"},
    {"training", "recognition"},
    {"convert", "demo", "recognize"},
    {"__init__"},
]


def modules() -> dict[str, ast.Module]:
    """The package's modules by their dotted name within it."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in names.items()}


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules of the package that the module ``name`` imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = name.split(".")[: -node.level]
            for target in (alias.name for alias in node.names):
                folder = ".".join([*package, *(node.module or "").split(".")]).strip(".")
                candidates = (f"{folder}.{target}".strip("."), folder, f"{folder}.__init__", "__init__")
                yield next(candidate for candidate in candidates if candidate in MODULES)


MODULES = modules()


def test_imports_go_downwards_only():
    layer = {package: height for height, packages in enumerate(LAYERS) for package in packages}
    upwards = [
        f"{name} imports {target}"
        for name, tree in MODULES.items()
        for target in imports(name, tree)
        if name.split(".")[0] != target.split(".")[0] and layer[target.split(".")[0]] >= layer[name.split(".")[0]]
    ]
    assert upwards == []


def test_no_module_imports_itself_through_others():
    TopologicalSorter({name: set(imports(name, tree)) for name, tree in MODULES.items()}).prepare()
