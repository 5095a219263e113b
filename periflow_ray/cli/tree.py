"""A directory as a tree with sizes, as ``checkpoint view`` and ``submit`` show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.tree import Tree

from periflow_ray.store.size_text import format_size

# A folder of images may hold a million files; more than this many per folder are summed up in one line.
_MAX_FILES_PER_FOLDER = 50


def build_file_tree(label: str, sizes: Mapping[str, int]) -> Tree:
    """A tree of files.

    Args:
        label: what stands at the top.
        sizes: relative path with forward slashes -> size in bytes.
    """
    nested: dict[str, Any] = {}
    for path, size in sorted(sizes.items()):
        *folders, name = path.split("/")
        branch = nested
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[name] = size
    tree = Tree(label)
    _grow(tree, nested)
    return tree


def _grow(tree: Tree, nested: dict[str, Any]) -> None:
    files = [(name, size) for name, size in nested.items() if not isinstance(size, dict)]
    for name, content in nested.items():
        if isinstance(content, dict):
            _grow(tree.add(f"📂 {name}"), content)
    for name, size in files[:_MAX_FILES_PER_FOLDER]:
        tree.add(f"{name} ({format_size(size)})")
    if rest := files[_MAX_FILES_PER_FOLDER:]:
        tree.add(f"… {len(rest)} more files ({format_size(sum(size for _, size in rest))})")
