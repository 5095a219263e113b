"""A dataset's files as a tree that stays readable when there are a million of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.tree import Tree

from periflow_ray.store.size_text import format_size

_MAX_LINES = 200
_MAX_LINES_PER_FOLDER = 50


@dataclass
class _Folder:
    folders: dict[str, _Folder] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    num_files: int = 0
    num_bytes: int = 0


def build_dataset_tree(sizes: Mapping[str, int]) -> Tree:
    """A tree of files; deep folders of a large dataset are folded to how many files and bytes they hold.

    Args:
        sizes: relative path with forward slashes -> size in bytes.
    """
    top = _nest(sizes)
    depth = 1
    while depth < _deepest(top) and _count_lines(top, depth + 1) <= _MAX_LINES:
        depth += 1
    tree = Tree("/")
    _grow(tree, top, depth)
    return tree


def _nest(sizes: Mapping[str, int]) -> _Folder:
    top = _Folder()
    for path, size in sorted(sizes.items()):
        *folders, name = path.split("/")
        branch = top
        for folder in folders:
            branch = branch.folders.setdefault(folder, _Folder())
            branch.num_files += 1
            branch.num_bytes += size
        branch.sizes[name] = size
    return top


def _deepest(folder: _Folder) -> int:
    return 1 + max(map(_deepest, folder.folders.values()), default=0)


def _count_lines(folder: _Folder, depth: int) -> int:
    if depth == 0:
        return 0
    shown = list(folder.folders.values())[:_MAX_LINES_PER_FOLDER]
    num_own = min(len(folder.folders), _MAX_LINES_PER_FOLDER) + min(len(folder.sizes), _MAX_LINES_PER_FOLDER)
    return num_own + sum(_count_lines(inner, depth - 1) for inner in shown)


def _grow(tree: Tree, folder: _Folder, depth: int) -> None:
    folders = list(folder.folders.items())
    for name, inner in folders[:_MAX_LINES_PER_FOLDER]:
        if depth > 1:
            _grow(tree.add(f"📂 {name}"), inner, depth - 1)
        else:
            tree.add(f"📂 {name} ({_describe(inner.num_files, inner.num_bytes)})")
    if rest := [inner for _, inner in folders[_MAX_LINES_PER_FOLDER:]]:
        held = _describe(sum(inner.num_files for inner in rest), sum(inner.num_bytes for inner in rest))
        tree.add(f"… {len(rest):,} more folders ({held})")
    files = list(folder.sizes.items())
    for name, size in files[:_MAX_LINES_PER_FOLDER]:
        tree.add(f"{name} ({format_size(size)})")
    if left := [size for _, size in files[_MAX_LINES_PER_FOLDER:]]:
        tree.add(f"… {len(left):,} more files ({format_size(sum(left))})")


def _describe(num_files: int, num_bytes: int) -> str:
    return f"{num_files:,} {'file' if num_files == 1 else 'files'}, {format_size(num_bytes)}"
