from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.root import StorageRoot, resolve_storage_uri


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
        lambda: root.download_file("jobs/1/plan.json", tmp_path / "plan.json"),
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
    root.upload_file(source, "checkpoints/a/model.pt")
    root.download_file("checkpoints/a/model.pt", tmp_path / "new" / "dir" / "model.pt")
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
        local_root.upload_file(tmp_path / "missing", "dataset")
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


def test_a_writable_root_keeps_no_trace_of_the_check(root):
    root.check_writable()
    assert root.list_files("") == {}


def test_a_root_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    root = StorageRoot(str(tmp_path / "file" / "storage"))
    with pytest.raises(StorageError) as caught:
        root.check_writable()
    assert str(caught.value).startswith(f"storage root '{tmp_path}/file/storage' is not writable: [Errno ")


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(StorageError) as caught:
        StorageRoot("nfs4://server/export")
    assert str(caught.value) == "storage root 'nfs4://server/export' cannot be opened: Protocol not known: nfs4"


def test_a_path_and_its_file_url_are_the_same_local_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = [StorageRoot(uri) for uri in (str(tmp_path / "s"), f"file://{tmp_path}/s", "s", "./x/../s/")]
    assert {(root.uri, root.is_local, root.local_path("a/b")) for root in roots} == {
        (f"{tmp_path}/s", True, tmp_path / "s" / "a" / "b")
    }


def test_a_uri_opens_the_same_memory_root_again(root):
    root.write_bytes("key", b"content")
    assert StorageRoot(root.uri).read_bytes("key") == b"content"


def test_arrow_reads_a_key_under_the_root(root):
    root.write_bytes("checkpoints/a/files/model.pt", b"weights")
    with root.arrow_filesystem().open_input_stream(root.path_of("checkpoints/a/files/model.pt")) as stream:
        assert stream.read() == b"weights"


def test_the_option_wins_over_the_variable_over_the_config_file_over_the_user_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("PERIFLOW_STORAGE")
    assert resolve_storage_uri() == str(tmp_path / "data" / "periflow-ray" / "storage")
    config = tmp_path / "config" / "periflow-ray" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("")
    assert resolve_storage_uri() == str(tmp_path / "data" / "periflow-ray" / "storage")
    config.write_text("storage: s3://bucket/prefix\n")
    assert resolve_storage_uri() == "s3://bucket/prefix"
    monkeypatch.setenv("PERIFLOW_STORAGE", "gs://team")
    assert resolve_storage_uri() == "gs://team"
    assert resolve_storage_uri("memory://x") == "memory://x"


@pytest.mark.parametrize("text", ["storage: [a, b]", "just text", "storage: {"])
def test_a_config_file_that_is_not_one_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PERIFLOW_STORAGE")
    path = tmp_path / "periflow-ray" / "config.yaml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(StorageError) as caught:
        resolve_storage_uri()
    assert str(path) in str(caught.value)
