from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from periflow_ray.errors import StorageError, UsageError
from periflow_ray.store.datasets.cache import CacheUse, DatasetCache

# Fetches the first half, says so, and waits to be killed.
KILLED_FETCH = """
import sys
from pathlib import Path
from periflow_ray.store.datasets.cache import DatasetCache

def fill(directory):
    (directory / "first.bin").write_bytes(b"1" * 40)
    print("half", flush=True)
    sys.stdin.read()

DatasetCache(Path(sys.argv[1]), 100).open("cifar-1", fill, size_bytes=80)
"""
# Uses an entry until it is killed.
KILLED_USE = """
import sys
from pathlib import Path
from periflow_ray.store.datasets.cache import DatasetCache

use = DatasetCache(Path(sys.argv[1]), 100).open("cifar-1", None)
print("in use", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> DatasetCache:
    """A cache for 100 bytes."""
    return DatasetCache(tmp_path / "cache", 100)


@pytest.fixture
def start_process(tmp_path: Path):
    """Starts a script on the cache and waits for its line."""
    started = []

    def start(script: str, line: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{line}\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def writes(num_bytes: int, *, name: str = "data.bin") -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(b"x" * num_bytes) and None


def never(directory: Path) -> None:
    raise AssertionError("the entry is there already")


def put(cache: DatasetCache, key: str, num_bytes: int, used_unix_s: float | None = None) -> CacheUse:
    """An entry that is no longer in use when the time of its last use is given."""
    use = cache.open(key, writes(num_bytes), size_bytes=num_bytes)
    if used_unix_s is not None:
        use.close()
        os.utime(cache.directory / "locks" / key, (used_unix_s, used_unix_s))
    return use


def entries_of(cache: DatasetCache) -> list[str]:
    return sorted(os.listdir(cache.directory / "entries"))


def test_a_directory_is_filled_once(cache):
    first = cache.open("cifar-1", writes(60), size_bytes=60)
    second = cache.open("cifar-1", never)
    assert first.path == second.path == cache.directory / "entries" / "cifar-1" / "files"
    assert (first.path / "data.bin").read_bytes() == b"x" * 60


def test_entries_are_read_only(cache):
    use = cache.open("cifar-1", lambda directory: (directory / "train").mkdir() or writes(5)(directory / "train"))
    for path in (use.path, use.path / "train", use.path / "train" / "data.bin"):
        assert path.stat().st_mode & 0o222 == 0


def test_the_entry_that_was_not_used_for_longest_makes_room(cache):
    put(cache, "old", 40, used_unix_s=100)
    put(cache, "older", 40, used_unix_s=50)
    cache.open("older", never).close()
    put(cache, "new", 40)
    assert entries_of(cache) == ["new", "older"]
    assert os.listdir(cache.directory / "trash") == []


def test_an_entry_in_use_stays_and_one_that_is_too_large_beside_it_is_refused(cache):
    in_use = put(cache, "in-use", 70)
    put(cache, "idle", 20, used_unix_s=100)
    with pytest.raises(StorageError) as caught:
        cache.open("new", never, size_bytes=31)
    assert str(caught.value) == (
        f"the dataset takes 31 bytes, but the dataset cache {cache.directory} may hold 100, and running jobs use 70 of "
        "them. Raise $PERIFLOW_CACHE_MAX_BYTES, or set $PERIFLOW_CACHE_DIR to a directory on a larger disk."
    )
    # Nothing went for an entry that does not fit anyway.
    assert entries_of(cache) == ["idle", "in-use"]
    in_use.close()
    put(cache, "new", 31)
    assert entries_of(cache) == ["new"]


@pytest.mark.parametrize("size_bytes", [101, None])
def test_an_entry_larger_than_the_cache_is_refused(cache, size_bytes):
    put(cache, "idle", 20, used_unix_s=100)
    with pytest.raises(StorageError) as caught:
        cache.open("large", writes(101), size_bytes=size_bytes)
    assert str(caught.value) == (
        f"the dataset takes 101 bytes, but the dataset cache {cache.directory} may hold 100. Raise "
        "$PERIFLOW_CACHE_MAX_BYTES, or set $PERIFLOW_CACHE_DIR to a directory on a larger disk."
    )
    assert (entries_of(cache), os.listdir(cache.directory / "partial")) == (["idle"], [])


def test_of_two_at_once_the_second_waits_for_the_first(cache):
    is_waiting = threading.Event()
    num_fills = []

    def fill(directory: Path) -> None:
        num_fills.append(1)
        second.start()
        assert is_waiting.wait(30)
        writes(60)(directory)

    used = []
    second = threading.Thread(target=lambda: used.append(cache.open("cifar-1", never, on_wait=is_waiting.set)))
    used.append(cache.open("cifar-1", fill, size_bytes=60))
    second.join(30)
    assert [(use.path / "data.bin").stat().st_size for use in used] == [60, 60]
    assert len(num_fills) == 1


def test_those_who_come_at_once_have_it_as_soon_as_it_is_there_and_while_the_others_use_it(cache, monkeypatch):
    num_users = 4
    have_looked = threading.Barrier(num_users)
    first_looks = iter(range(num_users))
    is_complete = DatasetCache._is_complete

    def look_together(self: DatasetCache, key: str) -> bool:
        found = is_complete(self, key)
        if next(first_looks, None) is not None:
            have_looked.wait(10)
        return found

    monkeypatch.setattr(DatasetCache, "_is_complete", look_together)
    fills: list[Path] = []

    def fill(directory: Path) -> None:
        fills.append(directory)
        writes(40)(directory)

    used: list[CacheUse] = []
    threads = [
        threading.Thread(target=lambda: used.append(cache.open("cifar-1", fill, size_bytes=40)), daemon=True)
        for _ in range(num_users)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(used), len(fills)) == (num_users, 1)


def test_a_fetch_of_another_dataset_counts_before_its_bytes_are_there(cache):
    def fill(directory: Path) -> None:
        with pytest.raises(StorageError, match="running jobs use 60 of them"):
            cache.open("second", never, size_bytes=50)
        writes(60)(directory)

    cache.open("first", fill, size_bytes=60)
    assert entries_of(cache) == ["first"]


def test_a_fetch_whose_process_was_killed_goes_on(cache, start_process):
    process = start_process(KILLED_FETCH, "half")
    process.kill()
    process.wait()
    assert entries_of(cache) == []
    found = []

    def go_on(directory: Path) -> None:
        found.extend(os.listdir(directory))
        writes(40, name="second.bin")(directory)

    use = cache.open("cifar-1", go_on, size_bytes=80)
    assert found == ["first.bin"]
    assert sorted(os.listdir(use.path)) == ["first.bin", "second.bin"]


def test_what_a_killed_fetch_left_makes_room_too(cache, start_process):
    process = start_process(KILLED_FETCH, "half")
    process.kill()
    process.wait()
    put(cache, "new", 90)
    assert (entries_of(cache), os.listdir(cache.directory / "partial")) == (["new"], [])


def test_an_entry_is_in_use_as_long_as_its_process_lives(cache, start_process):
    put(cache, "cifar-1", 60, used_unix_s=100)
    process = start_process(KILLED_USE, "in use")
    with pytest.raises(StorageError, match="running jobs use 60 of them"):
        cache.open("new", never, size_bytes=50)
    process.kill()
    process.wait()
    put(cache, "new", 50)
    assert entries_of(cache) == ["new"]


def test_an_entry_that_lost_bytes_is_fetched_again(cache):
    use = put(cache, "cifar-1", 60)
    os.chmod(use.path / "data.bin", 0o600)
    os.truncate(use.path / "data.bin", 59)
    use.close()
    again = cache.open("cifar-1", writes(60), size_bytes=60)
    assert (again.path / "data.bin").stat().st_size == 60


def test_the_environment_names_directory_and_size(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIFLOW_CACHE_DIR", str(tmp_path / "shared"))
    monkeypatch.setenv("PERIFLOW_CACHE_MAX_BYTES", "10")
    cache = DatasetCache()
    assert cache.directory == tmp_path / "shared"
    with pytest.raises(StorageError, match="may hold 10"):
        put(cache, "cifar-1", 11)
    monkeypatch.setenv("PERIFLOW_CACHE_MAX_BYTES", "10 GB")
    with pytest.raises(UsageError) as caught:
        DatasetCache()
    assert str(caught.value) == (
        "$PERIFLOW_CACHE_MAX_BYTES must be a number of bytes, such as 200000000000, not '10 GB'."
    )


def test_without_a_size_the_cache_leaves_a_part_of_the_disk_free(tmp_path, monkeypatch):
    monkeypatch.delenv("PERIFLOW_CACHE_MAX_BYTES", raising=False)
    cache = DatasetCache(tmp_path / "cache")
    put(cache, "cifar-1", 60)
    with pytest.raises(StorageError, match="may hold"):
        cache.open("huge", never, size_bytes=1 << 60)
    assert entries_of(cache) == ["cifar-1"]
