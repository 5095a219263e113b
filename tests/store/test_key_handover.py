"""The key of a job's secrets comes to the driver that asked for it, and to nobody who reads the storage root."""

from __future__ import annotations

import threading

import pytest

from periflow_ray.errors import ClusterError, StorageError
from periflow_ray.jobs.key_handover import ask_for_key, forget_asked, give_key
from periflow_ray.store.root import StorageRoot

KEY = "a-key-that-opens-secrets"


class WatchedRoot(StorageRoot):
    """Remembers all that was ever written."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.written: list[bytes] = []

    def write_bytes(self, key: str, content: bytes) -> None:
        self.written.append(content)
        super().write_bytes(key, content)


def give_in_background(root: StorageRoot, key: str = KEY) -> threading.Thread:
    thread = threading.Thread(
        target=give_key, args=(root, 1, key), kwargs={"has_ended": lambda: False, "timeout_s": 60}
    )
    thread.start()
    return thread


def test_the_driver_gets_the_key_and_nothing_of_it_stays(local_root):
    root = WatchedRoot(local_root.uri)
    giving = give_in_background(root)
    kept: list[str] = []
    assert ask_for_key(root, 1, keep=kept.append, timeout_s=60) == KEY
    giving.join(60)
    assert not giving.is_alive()
    assert kept == [KEY]
    assert root.list_names("jobs/1") == []
    assert len(root.written) == 2
    assert not any(KEY.encode() in content for content in root.written)


def test_a_driver_that_takes_the_place_of_one_that_had_asked_is_answered_too(local_root):
    with pytest.raises(StorageError, match="the secrets of job 1 did not come"):
        ask_for_key(local_root, 1, timeout_s=0)
    giving = give_in_background(local_root)
    assert ask_for_key(local_root, 1, timeout_s=60) == KEY
    giving.join(60)


def test_what_an_earlier_driver_asked_is_not_answered(local_root):
    with pytest.raises(StorageError):
        ask_for_key(local_root, 1, timeout_s=0)
    forget_asked(local_root, 1)
    with pytest.raises(ClusterError, match="did not fetch the job's secrets within 0 s"):
        give_key(local_root, 1, KEY, has_ended=lambda: False, timeout_s=0)
    assert local_root.list_names("jobs/1") == []
