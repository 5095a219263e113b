"""Which folder may import which, read from the source: spec -> plan -> submit -> runtime -> sdk; jobs -> store."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE_DIR = Path(__file__).resolve().parents[1] / "periflow_ray"

# What every part may import: small modules without imports of ours.
LEAVES = {"bounded_text", "errors", "finite_json", "names", "private_files", "secret_mask", "urls", "user_dirs"}
# Parts are the folders and top-level modules of the package; what a part may import besides itself and LEAVES.
# "periflow_ray" is the top level's surface, the SDK.
ALLOWED: dict[str, set[str]] = {
    "bounded_text": set(),
    "errors": set(),
    "finite_json": set(),
    "names": set(),
    "private_files": set(),
    "secret_mask": set(),
    "urls": set(),
    "user_dirs": set(),
    "spec": set(),
    "plan": {"spec"},
    "sweeps": {"spec", "plan", "jobs", "store"},
    "cluster": {"plan", "jobs", "store", "ray_jobs", "processes", "loops"},
    "ray_jobs": set(),
    "documents": set(),
    "credentials": {"documents"},
    "store": {"credentials", "documents"},
    "jobs": {"store"},
    "settings": {"credentials", "store"},
    "processes": {"loops"},
    "loops": set(),
    "sdk": {"loops"},
    "resumable": {"sdk"},
    "submit": {"spec", "plan", "sweeps", "cluster", "jobs", "store", "credentials", "ray_jobs", "processes", "loops"},
    "runtime": {
        "spec",
        "plan",
        "sweeps",
        "cluster",
        "sdk",
        "ray_jobs",
        "jobs",
        "store",
        "credentials",
        "processes",
        "loops",
    },
    "cli": {"cluster", "submit", "sweeps", "ray_jobs", "jobs", "store", "credentials", "settings", "plan", "spec"},
    "lightning": {"sdk", "periflow_ray"},
    "huggingface": {"sdk", "periflow_ray"},
    "torch_trainer": {"spec", "plan", "submit", "runtime", "sdk", "jobs", "store", "settings"},
    "planned_trials": {"torch_trainer", "submit", "spec", "plan", "runtime", "settings"},
    "tuning": {
        "planned_trials",
        "torch_trainer",
        "sweeps",
        "submit",
        "spec",
        "plan",
        "runtime",
        "jobs",
        "store",
        "settings",
    },
    "dataset_handle": {"store", "settings"},
    "__init__": {"spec", "sdk", "dataset_handle", "resumable", "torch_trainer", "tuning"},
}
# Modules from elsewhere that a part never imports, not even inside a function ...
FORBIDDEN: dict[str, set[str]] = {
    "spec": {"ray", "torch", "fsspec", "click", "time", "random", "datetime", "uuid", "secrets"},
    "plan": {"ray", "torch", "fsspec", "click", "time", "random", "datetime", "uuid", "secrets"},
    "cluster": {"ray", "torch", "click"},
    "cluster/config": {"ray", "torch", "fsspec", "click", "time", "random", "datetime", "uuid", "secrets"},
    "ray_jobs": {"ray", "torch", "click"},
    "loops": {"ray", "click", "torch"},
    "sdk": {"ray", "click"},
    "store": {"ray", "click", "torch"},
    "documents": {"ray", "click", "torch", "time", "random", "pydantic"},
    "jobs": {"ray", "click", "torch"},
    "credentials": {"ray", "click", "torch"},
    "settings": {"ray", "click", "torch"},
    "processes": {"ray", "click", "torch"},
    "submit": {"ray", "torch", "click"},
    "cli": {"ray", "torch"},
    "resumable": {"ray", "click"},
}
# ... and those it does not import before they are needed.
FORBIDDEN_AT_IMPORT: dict[str, set[str]] = {
    "sdk": {"ray", "torch", "click", "numpy"},
    "lightning": {"ray"},
    "huggingface": {"ray"},
    "dataset_handle": {"ray", "torch", "pyarrow"},
    "cli": {"ray", "torch", "pytorch_lightning", "matplotlib"},
    "sweeps": {"ray", "torch", "numpy"},
    "__init__": {"ray", "torch", "click", "pydantic"},
}
# What reads the environment; spec and plan get ids, times and variables as arguments.
ENVIRONMENT_READERS = {"environ", "environb", "getenv", "getenvb", "urandom"}


@pytest.fixture(scope="module")
def modules() -> dict[Path, ast.Module]:
    """Every module of the package, read and parsed once."""
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE_DIR.rglob("*.py"))}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE_DIR)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def room_of(path: Path) -> str:
    """The folder in a part that a module is in: ``cluster/config``."""
    return "/".join(path.relative_to(PACKAGE_DIR).parts[:2])


def find_imports(tree: ast.Module, module: str, *, at_import_only: bool = False) -> Iterator[str]:
    """Full names of what a module imports; ``if TYPE_CHECKING`` counts as not imported."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative imports are not used here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def own_part(name: str) -> str | None:
    """The part that an imported name belongs to; None if it is not the package's."""
    parts = name.split(".")
    if parts[0] != PACKAGE_DIR.name or parts[1:] == ["__version__"]:
        return None
    is_part = len(parts) > 1 and (PACKAGE_DIR / parts[1]).with_suffix(".py").exists()
    return parts[1] if len(parts) > 1 and (is_part or (PACKAGE_DIR / parts[1]).is_dir()) else "periflow_ray"


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE_DIR))


def test_imports_point_one_way(modules: dict[Path, ast.Module]):
    assert {part_of(path) for path in modules} <= ALLOWED.keys(), "every part needs a rule"
    problems = []
    for path, tree in modules.items():
        part = part_of(path)
        imported = {own_part(name) for name in find_imports(tree, name_of(path))} - {None}
        too_many = imported - ALLOWED[part] - LEAVES - {part}
        if too_many:
            allowed = sorted(ALLOWED[part])
            problems.append(f"{path} imports {sorted(map(str, too_many))}; '{part}' may import {allowed}")
    assert not problems, "\n".join(problems)


def test_heavy_and_impure_modules_stay_out(modules: dict[Path, ast.Module]):
    problems = []
    for path, tree in modules.items():
        part = part_of(path)
        imported = {name.split(".")[0] for name in find_imports(tree, name_of(path))}
        at_import = {name.split(".")[0] for name in find_imports(tree, name_of(path), at_import_only=True)}
        never = imported & (FORBIDDEN.get(part, set()) | FORBIDDEN.get(room_of(path), set()))
        too_early = at_import & FORBIDDEN_AT_IMPORT.get(part, set())
        if never:
            problems.append(f"{path} imports {sorted(never)}; '{part}' never does")
        if too_early:
            problems.append(f"{path} imports {sorted(too_early)} when it is imported; '{part}' may only where needed")
    assert not problems, "\n".join(problems)


def test_spec_and_plan_read_neither_environment_nor_clock(modules: dict[Path, ast.Module]):
    problems = []
    for path, tree in modules.items():
        if part_of(path) in ("spec", "plan") or room_of(path) == "cluster/config":
            read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            read |= {name.split(".")[-1] for name in find_imports(tree, name_of(path))}
            if read & ENVIRONMENT_READERS:
                problems.append(f"{path} uses {sorted(read & ENVIRONMENT_READERS)}; it gets what it needs as arguments")
    assert not problems, "\n".join(problems)


def test_the_rules_see_what_they_are_there_for():
    source = (
        "import torch.nn\n"
        "from ray.train import report\n"
        "if TYPE_CHECKING:\n    import click\n"
        "def f():\n    from periflow_ray.store import root\n    import periflow_ray as pf\n"
    )
    tree = ast.parse(source)
    assert set(find_imports(tree, "x")) == {
        "torch.nn",
        "ray.train.report",
        "periflow_ray.store.root",
        "periflow_ray",
    }
    assert set(find_imports(tree, "x", at_import_only=True)) == {"torch.nn", "ray.train.report"}
    assert [own_part(name) for name in ("periflow_ray.store.root", "periflow_ray", "periflow_ray.init", "ray")] == [
        "store",
        "periflow_ray",
        "periflow_ray",
        None,
    ]
