from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.transfer import download_file, upload_file


def test_a_key_reads_back_what_was_written(root):
    root.write_bytes("jobs/1/plan.json", b"first")
    root.write_bytes("jobs/1/plan.json", b"second, longer")
    assert root.read_bytes("jobs/1/plan.json") == b"second, longer"
    assert root.read_bytes("jobs/1/plan.json", start=8) == b"longer"
    assert root.read_bytes("jobs/1/plan.json", start=14) == b""
    assert root.read_bytes("jobs/1/plan.json", start=99) == b""


def test_names_files_and_existence_follow_the_keys(root):
    for key in ("jobs/1/job.json", "jobs/1/logs/node-0", "jobs/12/job.json", "experiments/a.json"):
        root.write_bytes(key, key.encode())
    assert root.list_names("") == ["experiments", "jobs"]
    assert root.list_names("jobs") == ["1", "12"]
    assert root.list_files("jobs/1") == {"job.json": 15, "logs/node-0": 18}
    assert [root.exists(key) for key in ("jobs", "jobs/1", "jobs/1/job.json", "jobs/2")] == [True, True, True, False]


def test_what_does_not_exist_has_no_names_and_no_files(root):
    assert root.list_names("nothing/here") == []
    assert root.list_files("nothing/here") == {}
    root.write_bytes("file", b"")
    assert root.list_names("file/below") == []


def test_reading_what_does_not_exist_names_key_and_root(root, tmp_path):
    message = f"'jobs/1/plan.json' does not exist in storage root '{root.uri}'"
    for read in (
        lambda: root.read_bytes("jobs/1/plan.json"),
        lambda: root.read_bytes("jobs/1/plan.json", start=3),
        lambda: root.read_json("jobs/1/plan.json"),
        lambda: download_file(root, "jobs/1/plan.json", tmp_path / "plan.json"),
    ):
        with pytest.raises(NotFoundError) as caught:
            read()
        assert str(caught.value) == message


def test_a_file_where_a_directory_should_be_reads_as_not_found(local_root):
    local_root.write_bytes("jobs", b"not a directory")
    with pytest.raises(NotFoundError):
        local_root.read_bytes("jobs/1/plan.json")


def test_json_reads_back_and_damage_is_a_storage_error(root):
    root.write_json("a.json", {"steps": [1, 2], "name": "학습"})
    assert root.read_json("a.json") == {"steps": [1, 2], "name": "학습"}
    root.write_bytes("a.json", b'{"steps": [1, ')
    with pytest.raises(StorageError) as caught:
        root.read_json("a.json")
    assert str(caught.value) == (
        f"'a.json' in storage root '{root.uri}' is damaged: Expecting value: line 1 column 15 (char 14)"
    )


def test_files_are_copied_in_and_out(root, tmp_path):
    source = tmp_path / "model.pt"
    source.write_bytes(bytes(range(256)) * 100)
    upload_file(root, source, "checkpoints/a/model.pt")
    download_file(root, "checkpoints/a/model.pt", tmp_path / "new" / "dir" / "model.pt")
    assert (tmp_path / "new" / "dir" / "model.pt").read_bytes() == source.read_bytes()


def test_a_key_is_created_only_once(root):
    assert root.create_exclusive("jobs/1/claim", b"first") is True
    assert root.create_exclusive("jobs/1/claim", b"second") is False
    assert root.read_bytes("jobs/1/claim") == b"first"


# fsspec's memory is not made for threads; what object stores promise here is theirs to keep.
def test_only_one_of_many_threads_creates_a_key(local_root):
    barrier = threading.Barrier(16)

    def create(number: int) -> bool:
        barrier.wait()
        return local_root.create_exclusive("jobs/1/claim", str(number).encode())

    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(create, range(16)))
    assert created.count(True) == 1
    assert local_root.read_bytes("jobs/1/claim") == str(created.index(True)).encode()


def test_readers_see_the_old_or_the_new_content_while_it_is_replaced(local_root):
    documents = [{"status": letter * 20_000} for letter in "abcdef"]
    contents = {json.dumps(document, indent=1).encode() for document in documents}
    local_root.write_json("state.json", documents[0])
    has_written = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not has_written.is_set():
            seen.add(local_root.read_bytes("state.json"))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        for document in documents:
            local_root.write_json("state.json", document)
    has_written.set()
    for reader in readers:
        reader.join()
    assert seen
    assert seen <= contents
    assert local_root.list_files("") == {"state.json": len(local_root.read_bytes("state.json"))}


def test_a_write_that_fails_leaves_the_old_content_and_no_part(local_root, tmp_path):
    local_root.write_bytes("dataset", b"old")
    with pytest.raises(OSError):
        upload_file(local_root, tmp_path / "missing", "dataset")
    assert local_root.read_bytes("dataset") == b"old"
    assert [path.name for path in Path(local_root.base_path).iterdir()] == ["dataset"]


def test_delete_takes_everything_below_a_key_and_nothing_else(root):
    for key in ("jobs/1/job.json", "jobs/1/logs/node-0/00000000", "jobs/12/job.json"):
        root.write_bytes(key, b"")
    root.delete("jobs/1")
    assert root.list_files("") == {"jobs/12/job.json": 0}
    root.delete("jobs/1")
    root.delete("jobs/12/job.json")
    assert root.list_files("") == {}


@pytest.mark.parametrize("key", ["a*.json", "a?.json", "a[bc].json"])
def test_delete_does_not_take_a_key_for_a_pattern(root, key):
    for name in (key, "ab.json", "abc.json"):
        root.write_bytes(name, b"")
    root.delete(key)
    assert root.list_names("") == ["ab.json", "abc.json"]


def test_a_copy_stays_when_its_source_is_replaced_or_deleted(root):
    root.write_bytes("a/model.pt", b"weights")
    root.copy_file("a/model.pt", "b/deep/model.pt")
    root.copy_file("a/model.pt", "b/deep/model.pt")
    root.write_bytes("a/model.pt", b"newer weights")
    assert root.read_bytes("b/deep/model.pt") == b"weights"
    root.delete("a")
    assert root.list_files("") == {"b/deep/model.pt": 7}
    with pytest.raises(NotFoundError) as caught:
        root.copy_file("a/model.pt", "c")
    assert str(caught.value) == f"'a/model.pt' does not exist in storage root '{root.uri}'"


def test_names_that_begin_with_a_dot_are_listed_like_others(root):
    for key in (".hydra/config.yaml", "a/.hidden", "a/b"):
        root.write_bytes(key, b"")
    assert root.list_names("") == [".hydra", "a"]
    assert root.list_names("a") == [".hidden", "b"]
    assert root.list_files("") == {".hydra/config.yaml": 0, "a/.hidden": 0, "a/b": 0}


def test_what_a_killed_writer_left_is_not_listed(local_root):
    local_root.write_bytes("a/model.pt", b"")
    local_root.local_path("a/.model.pt.0badcafe.periflow-partial").write_bytes(b"half")
    assert local_root.list_names("a") == ["model.pt"]
    assert local_root.list_files("a") == {"model.pt": 0}


def test_a_key_lists_no_names_below_itself(root):
    root.write_bytes("a/model.pt", b"")
    assert root.list_names("a/model.pt") == []


def test_keys_outside_the_root_are_refused(root):
    for use in (root.read_bytes, root.exists, root.delete, root.list_files):
        with pytest.raises(StorageError) as caught:
            use("jobs/../../etc/passwd")
        assert str(caught.value) == (
            f"'jobs/../../etc/passwd' is not a key of storage root '{root.uri}': it must not contain '..'"
        )


@pytest.mark.parametrize("prefix", ["", "/"])
def test_the_whole_root_is_never_deleted(root, prefix):
    root.write_bytes("a", b"")
    with pytest.raises(StorageError):
        root.delete(prefix)
    assert root.list_files("") == {"a": 0}


def test_delete_removes_a_link_and_not_what_it_leads_to(local_root, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"")
    local_root.write_bytes("datasets/other", b"")
    local_root.local_path("datasets/linked").symlink_to(tmp_path / "data")
    local_root.delete("datasets/linked")
    assert (tmp_path / "data" / "file").exists()
    assert local_root.list_names("datasets") == ["other"]
