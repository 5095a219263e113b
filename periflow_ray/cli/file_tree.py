"""Files as a tree with sizes, which stays readable when there are a million of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.tree import Tree

from periflow_ray.cli.plain_text import escape_cell
from periflow_ray.store.size_text import format_size

_MAX_LINES_PER_FOLDER = 50


@dataclass
class _Folder:
    folders: dict[str, _Folder] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    num_files: int = 0
    num_bytes: int = 0


def build_file_tree(label: str, sizes: Mapping[str, int], *, max_lines: int | None = None) -> Tree:
    """A tree of files; more than 50 files of one folder are summed up in one line.

    Args:
        label: what stands at the top.
        sizes: relative path with forward slashes -> size in bytes.
        max_lines: about how many lines the tree may have. Deep folders are then folded to how many files and bytes
            they hold, and many folders of one folder are summed up; None shows every folder.
    """
    top = _nest(sizes)
    depth = _deepest(top)
    if max_lines is not None:
        shown_depth = 1
        while shown_depth < depth and _count_lines(top, shown_depth + 1) <= max_lines:
            shown_depth += 1
        depth = shown_depth
    tree = Tree(escape_cell(label))
    _grow(tree, top, depth, None if max_lines is None else _MAX_LINES_PER_FOLDER)
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


def _grow(tree: Tree, folder: _Folder, depth: int, max_folders: int | None) -> None:
    folders = list(folder.folders.items())
    for name, inner in folders[:max_folders]:
        if depth > 1:
            _grow(tree.add(f"📂 {escape_cell(name)}"), inner, depth - 1, max_folders)
        else:
            tree.add(f"📂 {escape_cell(name)} ({_describe(inner.num_files, inner.num_bytes)})")
    if rest := [] if max_folders is None else [inner for _, inner in folders[max_folders:]]:
        held = _describe(sum(inner.num_files for inner in rest), sum(inner.num_bytes for inner in rest))
        tree.add(f"… {len(rest):,} more folders ({held})")
    files = list(folder.sizes.items())
    for name, size in files[:_MAX_LINES_PER_FOLDER]:
        tree.add(f"{escape_cell(name)} ({format_size(size)})")
    if left := [size for _, size in files[_MAX_LINES_PER_FOLDER:]]:
        tree.add(f"… {len(left):,} more files ({format_size(sum(left))})")


def _describe(num_files: int, num_bytes: int) -> str:
    return f"{num_files:,} {'file' if num_files == 1 else 'files'}, {format_size(num_bytes)}"
