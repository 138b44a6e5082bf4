import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rank_callbacks

ROOT = Path(rank_callbacks.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each part of the package may import of the others: the arrows of its layout.
PARTS = {
    "__init__": {"callbacks", "gradient_bounds", "inspection", "metrics", "network_report", "truncation", "wandb_view"},
    "tags": set(),
    "rows": {"tags"},
    "catalog": set(),
    "collapse_catalog": set(),
    "feature_catalog": {"collapse_catalog"},
    "functional": set(),
    "matrices": set(),
    "gradient_bounds": {"functional", "matrices"},
    "network_report": {"functional", "matrices"},
    "table": set(),
    "truncation": {"functional", "matrices", "table"},
    "inspection": {"functional", "matrices", "table"},
    "metrics": {"functional"},
    "writers": {"tags", "catalog"},
    "callbacks": {
        "writers",
        "metrics",
        "matrices",
        "functional",
        "gradient_bounds",
        "truncation",
        "figures",
        "tags",
        "rows",
        "catalog",
    },
    "wandb_view": {"tags"},
    "figures": {"tags", "rows", "catalog", "collapse_catalog", "feature_catalog"},
    "logged_names": {"tags", "catalog", "collapse_catalog", "feature_catalog"},
    "garbage": set(),
    "compare": {"figures", "rows", "tags", "catalog", "collapse_catalog", "logged_names", "garbage"},
    "cli": {"compare", "inspection"},
    "tensorboard_plugin": {"figures", "rows", "tags", "logged_names", "garbage"},
}
# What it may import of other people's packages, at the top of its files.
LIBRARIES = {
    "functional": {"torch"},
    "matrices": {"torch"},
    "gradient_bounds": {"torch"},
    "network_report": {"torch"},
    "truncation": {"torch"},
    "inspection": {"torch"},
    "metrics": {"torch", "torchmetrics"},
    "writers": {"torch", "numpy", "pytorch_lightning"},
    "callbacks": {"torch", "numpy", "pytorch_lightning", "torchmetrics"},
    "figures": {"numpy"},
    "compare": {"numpy"},
    "tensorboard_plugin": {"numpy", "tensorboard", "werkzeug"},
}
# Slow or optional: imported inside the function that needs them.
INSIDE_FUNCTIONS_ONLY = {
    *("wandb", "wandb_workspaces", "tensorboard", "plotly", "sklearn"),
    *("pandas", "rich", "tqdm", "yaml", "google"),
}
WITHOUT_TORCH = {
    "tags",
    "wandb_view",
    "rows",
    "catalog",
    "collapse_catalog",
    "feature_catalog",
    "figures",
    "logged_names",
    "garbage",
    "compare",
    "cli",
    "tensorboard_plugin",
}


def part(file: Path) -> str:
    """The part of the package that a file belongs to."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def modules(node: ast.AST) -> list[str]:
    """The full names of what an import statement imports; none for any other statement."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def runs_later(node: ast.AST) -> bool:
    """Whether a statement does nothing when its file is imported."""
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")


def imports(file: Path, on_import_only: bool = False) -> Iterator[str]:
    """The full names of all that a file imports, or of what it imports when it is imported itself."""

    def walk(node: ast.AST) -> Iterator[str]:
        yield from modules(node)
        if not (on_import_only and runs_later(node)):
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    return walk(ast.parse(file.read_text()))


def parts_of_ours(names: Iterator[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("rank_callbacks.")}


def libraries(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"rank_callbacks"}


def file_id(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=file_id)
def test_imports_within_the_package_point_one_way(file: Path) -> None:
    ours = parts_of_ours(imports(file)) - {part(file)}
    assert ours <= PARTS[part(file)]


@pytest.mark.parametrize("file", FILES, ids=file_id)
def test_imports_of_other_packages(file: Path) -> None:
    assert libraries(imports(file, on_import_only=True)) <= LIBRARIES.get(part(file), set())


@pytest.mark.parametrize("file", FILES, ids=file_id)
def test_slow_and_optional_packages_are_imported_inside_functions(file: Path) -> None:
    allowed = {"tensorboard"} if part(file) == "tensorboard_plugin" else set()
    assert libraries(imports(file, on_import_only=True)) & INSIDE_FUNCTIONS_ONLY <= allowed


@pytest.mark.parametrize("file", [file for file in FILES if part(file) in WITHOUT_TORCH], ids=file_id)
def test_what_reads_logs_does_without_torch(file: Path) -> None:
    assert not libraries(imports(file)) & {"torch", "pytorch_lightning", "lightning", "torchmetrics"}


@pytest.mark.parametrize("file", FILES, ids=file_id)
def test_imports_are_absolute(file: Path) -> None:
    assert not [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("file", FILES, ids=file_id)
def test_no_file_is_named_for_nothing(file: Path) -> None:
    assert not {"utils", "helpers", "core", "base", "common", "manager"} & {file.stem, *file.relative_to(ROOT).parts}


def test_package_is_imported_without_torch() -> None:
    script = "import sys, rank_callbacks; print({'torch', 'numpy', 'pytorch_lightning', 'lightning'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", rank_callbacks.__all__)
def test_public_name(name: str) -> None:
    value = getattr(rank_callbacks, name)
    assert value.__name__ == name
    assert name in dir(rank_callbacks)


def test_public_names_are_sorted_and_unique() -> None:
    assert list(rank_callbacks.__all__) == sorted(set(rank_callbacks.__all__))


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    seen = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(rank_callbacks.__all__) <= seen


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'rank_callbacks' has no attribute 'Rank'"):
        _ = rank_callbacks.Rank
