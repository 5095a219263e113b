"""Files on their way to and from a storage root.

Long because each promise about transfers has its example, on the same files.
"""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.flaky_storage import FlakyFileSystem, flaky_storage
from support.trees import read_tree, write_tree

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.checksum import checksum_bytes
from periflow_ray.store.local_files import copy_content
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer, UploadItem
from periflow_ray.store.transfer.downloading import choose_partial
from periflow_ray.store.transfer.limits import BandwidthLimit, ByteBudget

PART_BYTES = 1000
# Around the size of a part, where one piece becomes several.
CONTENTS = {
    "empty": b"",
    "one": b"1",
    "dir/almost": os.urandom(PART_BYTES - 1),
    "dir/exactly": os.urandom(PART_BYTES),
    "dir/just over": os.urandom(PART_BYTES + 1),
    "dir/deep/many, 한글 & 100%.bin": os.urandom(7 * PART_BYTES + 13),
}
TOTAL_BYTES = sum(map(len, CONTENTS.values()))


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    with flaky_storage() as filesystem:
        yield filesystem


@pytest.fixture
def flaky_root(flaky: type[FlakyFileSystem]) -> StorageRoot:
    return StorageRoot("flaky://bucket/storage")


def write_sources(directory: Path) -> list[UploadItem]:
    write_tree(directory, CONTENTS)
    return [UploadItem(directory / name, f"a/{name}") for name in CONTENTS]


def item_for(key: str, target: Path, content: bytes) -> DownloadItem:
    return DownloadItem(key, target, len(content), checksum_bytes(content))


def test_files_go_up_and_come_down_as_they_are(root, tmp_path):
    Transfer(root, part_bytes=PART_BYTES).upload_files(write_sources(tmp_path / "source"))
    assert root.list_files("a") == {name: len(content) for name, content in CONTENTS.items()}
    items = [item_for(f"a/{name}", tmp_path / "target" / name, content) for name, content in CONTENTS.items()]
    Transfer(root, part_bytes=PART_BYTES).download_files(items)
    assert read_tree(tmp_path / "target") == CONTENTS


def test_more_files_than_workers_are_all_moved(root, tmp_path):
    names = [f"{number:03}" for number in range(300)]
    for name in names:
        (tmp_path / name).write_text(name)
    Transfer(root, num_workers=3).upload_files([UploadItem(tmp_path / name, f"many/{name}") for name in names])
    Transfer(root, num_workers=3).download_files(
        [DownloadItem(f"many/{name}", tmp_path / "down" / name, 3) for name in names]
    )
    assert read_tree(tmp_path / "down") == {name: name.encode() for name in names}


def test_every_byte_is_told_once(root, tmp_path):
    told: list[int] = []
    Transfer(root, part_bytes=PART_BYTES, on_bytes=told.append).upload_files(write_sources(tmp_path / "source"))
    assert sum(told) == TOTAL_BYTES
    told.clear()
    items = [item_for(f"a/{name}", tmp_path / "target" / name, content) for name, content in CONTENTS.items()]
    Transfer(root, part_bytes=PART_BYTES, on_bytes=told.append).download_files(items)
    assert sum(told) == TOTAL_BYTES
    told.clear()
    # What is there already counts, so that a display comes to its end.
    Transfer(root, part_bytes=PART_BYTES, on_bytes=told.append).download_files(items)
    assert sum(told) == TOTAL_BYTES


def test_an_upload_replaces_what_the_key_held(root, tmp_path):
    root.write_bytes("model.pt", b"old and longer")
    (tmp_path / "model.pt").write_bytes(b"new")
    Transfer(root).upload_files([UploadItem(tmp_path / "model.pt", "model.pt")])
    assert root.read_bytes("model.pt") == b"new"


def test_a_source_that_does_not_exist_is_an_error_before_anything_is_moved(root, tmp_path):
    (tmp_path / "there").write_bytes(b"x")
    items = [UploadItem(tmp_path / "there", "there"), UploadItem(tmp_path / "missing", "missing")]
    with pytest.raises(FileNotFoundError):
        Transfer(root).upload_files(items)
    assert root.list_files("") == {}


def test_only_an_immutable_source_is_linked_into_a_local_root(local_root, tmp_path):
    (tmp_path / "snapshot").write_bytes(b"weights")
    (tmp_path / "live").write_bytes(b"weights")
    items = [UploadItem(tmp_path / "snapshot", "snapshot", is_immutable=True), UploadItem(tmp_path / "live", "live")]
    for _ in range(2):
        Transfer(local_root).upload_files(items)
        assert (tmp_path / "snapshot").samefile(local_root.local_path("snapshot"))
        assert not (tmp_path / "live").samefile(local_root.local_path("live"))
        assert sorted(os.listdir(local_root.base_path)) == ["live", "snapshot"]


def test_a_file_without_a_size_of_its_own_is_copied_whole(tmp_path):
    # The kernel makes up its content while it is read, and says that it has 0 bytes.
    copy_content("/proc/sys/kernel/ostype", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "Linux\n"


def test_a_key_that_does_not_exist_is_named(root, tmp_path):
    for size in (10, 10 * PART_BYTES):
        with pytest.raises(NotFoundError) as caught:
            Transfer(root, part_bytes=PART_BYTES).download_files(
                [DownloadItem("a/none", tmp_path / "x" / "none", size)]
            )
        assert str(caught.value) == f"'a/none' does not exist in storage root '{root.uri}'"
        assert not (tmp_path / "x" / "none").exists()


@pytest.mark.parametrize("num_bytes", [10, 5 * PART_BYTES])
def test_a_damaged_key_is_refused_and_the_target_stays_as_it_was(root, tmp_path, num_bytes):
    root.write_bytes("model.pt", b"?" * num_bytes)
    target = tmp_path / "target" / "model.pt"
    target.parent.mkdir()
    target.write_bytes(b"what was here before")
    expected, found = checksum_bytes(b"!" * num_bytes), checksum_bytes(b"?" * num_bytes)
    with pytest.raises(StorageError) as caught:
        Transfer(root, part_bytes=PART_BYTES).download_files([DownloadItem("model.pt", target, num_bytes, expected)])
    assert str(caught.value) == (
        f"'model.pt' in storage root '{root.uri}' is damaged: its checksum is {found}, not {expected}"
    )
    assert read_tree(tmp_path / "target") == {"model.pt": b"what was here before"}


@pytest.mark.parametrize(
    ("size", "difference"),
    [(0, 1), *((size, difference) for size in (1, PART_BYTES, 3 * PART_BYTES) for difference in (-1, 1))],
)
def test_a_key_of_another_size_is_refused_even_without_a_checksum(root, tmp_path, size, difference):
    root.write_bytes("model.pt", b"?" * (size + difference))
    with pytest.raises(StorageError) as caught:
        Transfer(root, part_bytes=PART_BYTES).download_files([DownloadItem("model.pt", tmp_path / "model.pt", size)])
    assert str(caught.value) == (
        f"'model.pt' in storage root '{root.uri}' is damaged: it has {size + difference} bytes, not {size}"
    )
    assert not (tmp_path / "model.pt").exists()


def test_a_target_that_is_right_is_not_read_again(root, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    # The storage root does not even have the key.
    Transfer(root).download_files([item_for("model.pt", tmp_path / "model.pt", b"weights")])
    with pytest.raises(NotFoundError):
        Transfer(root).download_files([item_for("model.pt", tmp_path / "model.pt", b"another")])


def test_an_interrupted_download_goes_on_where_it_ended(flaky_root, flaky, tmp_path):
    content = os.urandom(5 * PART_BYTES)
    flaky_root.write_bytes("model.pt", content)
    item = item_for("model.pt", tmp_path / "model.pt", content)
    told: list[int] = []

    def tell(num_bytes: int) -> None:
        told.append(num_bytes)
        if len(told) == 4:  # Nothing is there at first, then two parts, and the third breaks off.
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Transfer(flaky_root, num_workers=1, part_bytes=PART_BYTES, on_bytes=tell).download_files([item])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".done", ".part"]
    flaky.calls.clear()
    Transfer(flaky_root, num_workers=1, part_bytes=PART_BYTES).download_files([item])
    assert [call for call in flaky.calls if call[0] == "cat_file"] == [
        ("cat_file", 3 * PART_BYTES, 4 * PART_BYTES),
        ("cat_file", 4 * PART_BYTES, 5 * PART_BYTES + 1),
    ]
    assert read_tree(tmp_path) == {"model.pt": content}


@pytest.mark.parametrize("size", [10, 3 * PART_BYTES], ids=["small", "large"])
def test_names_that_look_like_those_of_partial_files_do_no_harm(root, tmp_path, size):
    names = ["x", "x.part", "x.part.done", ".x.0badcafe.partial", "y" * 255, "." + "z" * 249 + ".part"]
    partial_path = choose_partial(tmp_path / "down" / "x", set())
    names += [partial_path.name, partial_path.with_suffix(".done").name]
    contents = {name: os.urandom(size) for name in names}
    write_tree(tmp_path / "source", contents)
    Transfer(root).upload_files([UploadItem(tmp_path / "source" / name, f"a/{name}") for name in names])
    for _ in range(5):
        items = [item_for(f"a/{name}", tmp_path / "down" / name, content) for name, content in contents.items()]
        Transfer(root, part_bytes=PART_BYTES).download_files(items)
        assert read_tree(tmp_path / "down") == contents
        shutil.rmtree(tmp_path / "down")


def test_any_number_of_large_files_needs_few_descriptors(flaky_root, tmp_path):
    content = os.urandom(PART_BYTES + 1)
    names = [f"{number}.bin" for number in range(400)]
    for name in names:
        flaky_root.write_bytes(name, content)
    items = [item_for(name, tmp_path / "down" / name, content) for name in names]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    try:
        Transfer(flaky_root, part_bytes=PART_BYTES).download_files(items)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(read_tree(tmp_path / "down")) == len(names)


@pytest.mark.parametrize("sidecar", ['{"size": 1}\n0\n1\n', "", "no JSON\n0\n", None])
def test_parts_that_may_be_of_another_content_are_not_used(flaky_root, tmp_path, sidecar):
    content = os.urandom(3 * PART_BYTES)
    flaky_root.write_bytes("model.pt", content)
    (tmp_path / "down").mkdir()
    item = item_for("model.pt", tmp_path / "down" / "model.pt", content)
    partial_path = choose_partial(item.target, set())
    partial_path.write_bytes(b"?" * 9 * PART_BYTES)
    if sidecar is not None:
        partial_path.with_suffix(".done").write_text(sidecar)
    Transfer(flaky_root, part_bytes=PART_BYTES).download_files([item])
    assert read_tree(tmp_path / "down") == {"model.pt": content}


def test_an_operation_that_fails_for_a_moment_is_tried_again(flaky_root, flaky, tmp_path):
    (tmp_path / "source").write_bytes(b"weights")
    flaky.failures["put_file"] = [TimeoutError()]
    Transfer(flaky_root).upload_files([UploadItem(tmp_path / "source", "model.pt")])
    flaky.failures["cat_file"] = [ConnectionResetError()]
    Transfer(flaky_root).download_files([item_for("model.pt", tmp_path / "target", b"weights")])
    assert (tmp_path / "target").read_bytes() == b"weights"


def test_an_operation_that_is_refused_is_not_tried_again(flaky_root, flaky, tmp_path):
    flaky_root.write_bytes("model.pt", b"weights")
    flaky.failures["cat_file"] = [PermissionError(13, "Permission denied")] * 2
    with pytest.raises(StorageError) as caught:
        Transfer(flaky_root).download_files([item_for("model.pt", tmp_path / "target", b"weights")])
    assert str(caught.value) == "'model.pt' in storage root 'flaky://bucket/storage': Permission denied"
    assert len(flaky.failures["cat_file"]) == 1


def test_the_first_failure_stops_the_rest(flaky_root, flaky, tmp_path):
    sources = []
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"x")
        sources.append(UploadItem(tmp_path / str(number), f"a/{number}"))
    flaky.failures["put_file"] = [PermissionError(13, "Permission denied")]
    transfer = Transfer(flaky_root, num_workers=1)
    with pytest.raises(StorageError):
        transfer.upload_files(sources)
    assert flaky_root.list_files("a") == {}
    # The same transfer may be run again.
    transfer.upload_files(sources)
    assert len(flaky_root.list_files("a")) == 100


def test_a_cancelled_transfer_ends_with_an_error_and_leaves_no_part_of_a_file(local_root, tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 10 * PART_BYTES)
    transfer = Transfer(
        local_root,
        num_workers=1,
        part_bytes=PART_BYTES,
        bandwidth_bytes_per_s=1 << 40,
        on_bytes=lambda num_bytes: transfer.cancel(),
    )
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            transfer.upload_files([UploadItem(tmp_path / "source", "a/model.pt")])
        assert str(caught.value) == f"the transfer with storage root '{local_root.uri}' was cancelled"
    assert read_tree(Path(local_root.base_path)) == {}


def test_a_failure_to_tell_is_not_swallowed(root, tmp_path):
    def tell(num_bytes: int) -> None:
        raise ZeroDivisionError

    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(ZeroDivisionError):
        Transfer(root, on_bytes=tell).upload_files([UploadItem(tmp_path / "source", "a")])


def test_workers_share_the_bandwidth(local_root, tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(b"x" * 10_000)
    started_s = time.monotonic()
    Transfer(local_root, part_bytes=PART_BYTES, bandwidth_bytes_per_s=200_000).upload_files(
        [UploadItem(tmp_path / name, name) for name in ("a", "b", "c", "d")]
    )
    # All but the last piece have to pass before the last may begin: 39,000 bytes.
    assert time.monotonic() - started_s >= 39_000 / 200_000


def test_waiting_for_bandwidth_ends_when_the_transfer_stops():
    stop = threading.Event()
    limit = BandwidthLimit(1, stop)
    limit.wait_for(1_000_000)
    stop.set()
    limit.wait_for(1)


def test_no_more_bytes_are_held_than_the_budget_has():
    budget = ByteBudget(100)
    lock = threading.Lock()
    held, peak = 0, 0

    def hold(num_bytes: int) -> None:
        nonlocal held, peak
        for _ in range(50):
            with budget.holding(num_bytes):
                with lock:
                    held += num_bytes
                    peak = max(peak, held)
                with lock:
                    held -= num_bytes

    threads = [threading.Thread(target=hold, args=(num_bytes,)) for num_bytes in (40, 40, 40, 60, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == 0
    assert 40 <= peak <= 100
    # A piece that is larger than the whole budget goes alone.
    with budget.holding(1000):
        pass
