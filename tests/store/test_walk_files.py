"""One way to list the files of a directory, for snapshots, uploads, datasets and workspaces."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from periflow_ray.store.local_files import walk_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in ("a/b/one", "a.txt", "z", "outside/weights"):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(path)
    shutil.move(tmp_path / "tree" / "outside", tmp_path / "outside")
    return tmp_path / "tree"


def test_links_to_directories_are_followed_but_never_in_a_circle(tree, tmp_path):
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "a/b/up").symlink_to(tree)
    (tree / "a/self").symlink_to(".")
    (tmp_path / "outside" / "back").symlink_to(tree)
    circles: list[str] = []
    assert list(walk_files(tree, on_circle=circles.append)) == ["a/b/one", "a.txt", "linked/weights", "z"]
    assert circles == [f"{tree}/a/b/up", f"{tree}/a/self", f"{tree}/linked/back"]


def test_a_directory_that_is_itself_a_link_has_no_longer_circles(tree, tmp_path):
    (tmp_path / "alias").symlink_to(tree)
    (tree / "a/b/up").symlink_to(tree / "a")
    assert list(walk_files(tmp_path / "alias")) == ["a/b/one", "a.txt", "z"]


def test_what_is_no_file_is_left_out_and_told(tree):
    (tree / "dangling").symlink_to("nothing")
    (tree / "itself").symlink_to("itself")
    os.mkfifo(tree / "pipe")
    others: list[str] = []
    assert list(walk_files(tree, on_other=others.append)) == ["a/b/one", "a.txt", "z"]
    assert others == [f"{tree}/dangling", f"{tree}/itself", f"{tree}/pipe"]


def test_links_can_be_listed_in_place_of_what_they_lead_to(tree, tmp_path):
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "dangling").symlink_to("nothing")
    assert list(walk_files(tree, follows_links=False)) == ["a/b/one", "a.txt", "dangling", "linked", "z"]


def test_nothing_below_an_unwanted_directory_is_looked_at(tree):
    seen: list[str] = []

    def is_wanted(entry: os.DirEntry[str]) -> bool:
        seen.append(entry.name)
        return entry.name != "a"

    assert list(walk_files(tree, wants=is_wanted)) == ["a.txt", "z"]
    assert seen == ["a", "a.txt", "z"]


def test_a_directory_that_goes_meanwhile_has_no_files(tree):
    walk = walk_files(tree, wants=lambda entry: entry.name != "a" or bool(shutil.rmtree(entry.path)) or True)
    assert list(walk) == ["a.txt", "z"]


def test_directories_may_be_deeper_than_pythons_stack(tmp_path):
    directories = [tmp_path / ("d/" * depth) for depth in range(1, 1101)]
    leaf = directories[-1] / "leaf"
    try:
        for directory in directories:
            directory.mkdir()
        leaf.write_text("")
        assert list(walk_files(tmp_path)) == ["d/" * 1100 + "leaf"]
    finally:
        # Shorter than Python's stack again, for whoever removes the test's directory.
        leaf.unlink(missing_ok=True)
        for directory in reversed(directories):
            if directory.is_dir():
                directory.rmdir()


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(walk_files(tmp_path / "nowhere"))
