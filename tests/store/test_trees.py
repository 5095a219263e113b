"""One way to list a directory and to make it again, for snapshots, uploads, datasets and workspaces."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from periflow_ray.store.checkpoints import LocalFile
from periflow_ray.store.keys import key_of_file
from periflow_ray.store.trees import (
    TreeEntry,
    TreeFile,
    make_entries,
    refuse_entry,
    set_facts,
    stays_inside,
    walk_tree,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in ("a/b/one", "a.txt", "z", "outside/weights"):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(path)
    shutil.move(tmp_path / "tree" / "outside", tmp_path / "outside")
    return tmp_path / "tree"


class Listing:
    """What a walk finds: files and directories by path, links with where they lead, and what it skips."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.skipped: dict[str, str] = {}

        def skip(path: str, reason: str) -> None:
            self.skipped[os.path.relpath(path, directory)] = reason

        found = list(walk_tree(directory, on_skipped=skip, **options))
        self.files = [one.path for one in found if isinstance(one, TreeFile)]
        entries = [one for one in found if isinstance(one, TreeEntry)]
        self.directories = [entry.path for entry in entries if entry.link_to is None]
        self.links = {entry.path: entry.link_to for entry in entries if entry.link_to is not None}


def test_everything_is_listed_in_the_order_of_the_names(tree):
    (tree / "empty").mkdir()
    (tree / "latest").symlink_to("a/b")
    listing = Listing(tree)
    assert listing.files == ["a/b/one", "a.txt", "z"]
    assert listing.directories == ["a", "a/b", "empty"]
    assert listing.links == {"latest": "a/b"}
    assert listing.skipped == {}


def test_a_link_out_counts_as_what_it_leads_to(tree, tmp_path):
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "more").symlink_to(tmp_path / "outside" / "weights")
    (tree / "alone").symlink_to(tmp_path / "one")
    (tmp_path / "one").touch()
    listing = Listing(tree)
    assert listing.files == ["a/b/one", "a.txt", "alone", "linked/weights", "z"]
    assert listing.directories == ["a", "a/b", "linked"]
    # That one is there already.
    assert listing.links == {"more": "linked/weights"}


def test_a_link_out_can_be_left_out(tree, tmp_path):
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "gone").symlink_to("../gone")
    listing = Listing(tree, follows_links_out=False)
    assert listing.files == ["a/b/one", "a.txt", "z"]
    assert listing.skipped == {
        "linked": f"is a link to '{tmp_path}/outside', which is not in it",
        "gone": "is a link to '../gone', which is not in it",
    }


def test_circles_are_links(tree, tmp_path):
    (tree / "linked").symlink_to(tmp_path / "outside")
    (tree / "a/b/up").symlink_to(tree)
    (tree / "a/self").symlink_to(".")
    (tree / "itself").symlink_to("itself")
    (tmp_path / "outside" / "back").symlink_to(tree)
    (tmp_path / "outside" / "again").symlink_to(tmp_path / "outside")
    (tree / "parent").symlink_to(tmp_path)
    listing = Listing(tree)
    assert listing.files == ["a/b/one", "a.txt", "linked/weights", "z"]
    assert listing.links == {
        "a/b/up": "../..",
        "a/self": ".",
        "itself": "itself",
        "linked/again": ".",
        "linked/back": "..",
    }
    assert listing.skipped == {"parent": "is a link to a directory that it is in"}


def test_a_mesh_of_links_is_listed_once(tmp_path):
    """Thirty directories, each with two links to the next one: a billion paths lead through them."""
    for number in range(30):
        directory = tmp_path / "mesh" / str(number)
        directory.mkdir(parents=True)
        for name in "ab":
            (directory / name).symlink_to(f"../{number + 1}")
    (tmp_path / "mesh" / "30").mkdir()
    (tmp_path / "mesh" / "30" / "leaf").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "in").symlink_to(tmp_path / "mesh" / "0")
    listing = Listing(tmp_path / "tree")
    assert listing.files == ["in" + "/a" * 30 + "/leaf"]
    assert len(listing.links) == 30


@pytest.mark.parametrize("target", ["/proc/self", "/proc", "/sys/kernel", "/dev/zero", "/dev"])
def test_the_machines_own_files_are_not_read(tree, target):
    (tree / "system").symlink_to(target)
    assert list(Listing(tree).skipped) == ["system"]


def test_what_is_no_file_is_skipped_and_told(tree, monkeypatch):
    (tree / "dangling").symlink_to("nothing")
    (tree / "lost").symlink_to("/nowhere/at/all")
    os.mkfifo(tree / "pipe")
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listing = Listing(tree)
    # A link to what is not there is what was saved.
    assert listing.links == {"dangling": "nothing"}
    assert listing.skipped == {"lost": "is a link to nothing", "pipe": "is a pipe", "socket": "is a socket"}


def test_a_directory_that_is_itself_a_link_is_the_same_tree(tree, tmp_path):
    (tmp_path / "alias").symlink_to(tree)
    (tree / "a/b/up").symlink_to(tree / "a")
    listing = Listing(tmp_path / "alias")
    assert listing.files == ["a/b/one", "a.txt", "z"]
    assert listing.links == {"a/b/up": ".."}


def test_nothing_below_an_unwanted_directory_is_looked_at(tree):
    seen: list[str] = []

    def is_wanted(entry: os.DirEntry[str]) -> bool:
        seen.append(entry.name)
        return entry.name != "a"

    assert Listing(tree, wants=is_wanted).files == ["a.txt", "z"]
    assert seen == ["a", "a.txt", "z"]


def test_a_directory_that_goes_meanwhile_has_nothing_in_it(tree):
    wants = lambda entry: entry.name != "a" or bool(shutil.rmtree(entry.path)) or True  # noqa: E731
    assert Listing(tree, wants=wants).files == ["a.txt", "z"]


def test_directories_may_be_deeper_than_pythons_stack(tmp_path):
    directories = [tmp_path / ("d/" * depth) for depth in range(1, 1101)]
    leaf = directories[-1] / "leaf"
    try:
        for directory in directories:
            directory.mkdir()
        leaf.write_text("")
        assert Listing(tmp_path).files == ["d/" * 1100 + "leaf"]
    finally:
        # Shorter than Python's stack again, for whoever removes the test's directory.
        leaf.unlink(missing_ok=True)
        for directory in reversed(directories):
            if directory.is_dir():
                directory.rmdir()


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(walk_tree(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("path", "link_to", "is_inside"),
    [
        ("a", "b", True),
        ("a", "./b/", True),
        ("a/b", "..", True),
        ("a/b", "../c", True),
        ("a", ".", True),
        ("a", "..", False),
        ("a/b", "../..", False),
        ("a", "/etc/passwd", False),
        # Where b is a link to another directory, this is that one's parent.
        ("a", "b/../c", False),
        ("a/x", "../b/../../c", False),
        ("a", "", False),
        ("a", "b\0", False),
    ],
)
def test_a_link_of_a_stored_document_must_not_lead_out(path, link_to, is_inside):
    assert stays_inside(path, link_to) is is_inside
    assert (refuse_entry(TreeEntry(path, link_to)) is None) is is_inside


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", ""])
def test_a_directory_of_a_stored_document_must_not_lie_elsewhere(path):
    assert refuse_entry(TreeEntry(path)) == f"'{path}', which does not stay inside"


def test_a_tree_is_made_again_with_times_and_permissions(tmp_path):
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    entries = [TreeEntry("d", None, 5_000_000_001), TreeEntry("d/e", None, 3_000_000_002), TreeEntry("d/l", "e", 7)]
    for _ in range(2):  # What is there already is made again.
        make_entries(tmp_path, entries)
        set_facts(tmp_path, [LocalFile("run.sh", 10, "", True, 1_000_000_003)], entries)
    assert os.readlink(tmp_path / "d" / "l") == "e"
    assert os.access(tmp_path / "run.sh", os.X_OK)
    times = [os.lstat(tmp_path / name).st_mtime_ns for name in ("d", "d/e", "d/l", "run.sh")]
    assert times == [5_000_000_001, 3_000_000_002, 7, 1_000_000_003]


@pytest.mark.parametrize(
    "path", ["epoch=1-step=20.ckpt", "a/b/c.bin", ".hidden", "모델/가중치 1.pt", "a+b,c@d_e-f", "img[1] (2).png"]
)
def test_usual_paths_are_their_own_keys(path):
    assert key_of_file("files", path) == f"files/{path}"


@pytest.mark.parametrize(
    "path",
    [
        "a%20b",
        "a#b",
        "a?b",
        "a*b",
        "a\\b",
        "a\nb",
        "a\x01b",
        "dot.",
        "dots./x",
        "blank ",
        " blank",
        "cafe\u0301",
        "\udcff",
        "x" * 401,
        ".path-abc",
        ".x.0123abcd.periflow-partial",
        "a/.path-abc",
    ],
)
def test_other_paths_have_keys_that_every_storage_takes(path):
    key = key_of_file("files", path)
    assert key.startswith("files/.path-")
    assert key.removeprefix("files/.path-").isalnum()
    assert key != key_of_file("files", path + "x")
