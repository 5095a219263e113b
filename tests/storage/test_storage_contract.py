"""What keys promise, the same on every kind of storage."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.root import StorageRoot

NUM_RACERS = 8
# With the one server of S3 that heeds conditions.
EVERY_KIND = ["local", "s3-moto", "s3-rclone", "azure", "memory"]
SPECIAL_NAMES = [
    "with space",
    "체크포인트.pt",
    "a+b",
    "100%",
    "50%25",
    "#1",
    "why",
    "why?",
    "hash#",
    "[x]",
    "star*",
    "{y}",
    "~tilde",
    "a&b=c;d,e@f:g",
    "it's",
    '"quoted"',
    ".hidden",
    "..two-dots",
    "épée",
]


def test_content_is_read_back_and_replaced(any_root):
    for content in (b"first", b"", b"\0\r\n\xff" * 1000, b"last"):
        any_root.write_bytes("jobs/1/state", content)
        assert any_root.read_bytes("jobs/1/state") == content
    assert any_root.list_files("") == {"jobs/1/state": 4}


def test_a_key_is_read_from_a_byte_on(any_root):
    any_root.write_bytes("log", b"0123456789")
    assert [any_root.read_bytes("log", start=start) for start in (0, 1, 9, 10, 11)] == [
        b"0123456789",
        b"123456789",
        b"9",
        b"",
        b"",
    ]
    any_root.write_bytes("empty", b"")
    assert any_root.read_bytes("empty", start=0) == b""


@pytest.mark.parametrize("key", ["missing", "jobs/1/missing", "jobs", "jobs/1", "jobs/1/state/below"])
def test_what_is_no_file_cannot_be_read(any_root, key):
    any_root.write_bytes("jobs/1/state", b"")
    with pytest.raises((NotFoundError, IsADirectoryError)):
        any_root.read_bytes(key)


def test_json_comes_back_as_it_went(any_root):
    value = {"이름": "ada", "steps": [1, 2.5, None], "nested": {"is_spot": True}}
    any_root.write_json("jobs/1/job.json", value)
    assert any_root.read_json("jobs/1/job.json") == value


def test_a_key_and_what_is_above_it_exist(any_root):
    any_root.write_bytes("jobs/12/state", b"")
    keys = ("jobs", "jobs/12", "jobs/12/state", "jobs/1", "jobs/12/stat", "job", "jobs/12/state/x")
    assert [any_root.exists(key) for key in keys] == [True, True, True, False, False, False, False]


def test_names_of_every_kind_are_kept(any_root):
    for number, name in enumerate(SPECIAL_NAMES):
        any_root.write_bytes(f"flat/{name}", str(number).encode())
        any_root.write_bytes(f"deep/{name}/{name}", b"deep")
    assert any_root.list_names("flat") == sorted(SPECIAL_NAMES)
    assert any_root.list_names("deep") == sorted(SPECIAL_NAMES)
    assert any_root.list_files("flat") == {name: len(str(number)) for number, name in enumerate(SPECIAL_NAMES)}
    assert any_root.list_files("deep") == {f"{name}/{name}": 4 for name in SPECIAL_NAMES}
    for number, name in enumerate(SPECIAL_NAMES):
        assert any_root.list_names(f"deep/{name}") == [name]
        assert any_root.list_files(f"deep/{name}") == {name: 4}
        assert any_root.read_bytes(f"flat/{name}") == str(number).encode()
        assert any_root.exists(f"flat/{name}")


def test_a_key_of_every_name_is_copied_and_deleted_alone(any_root):
    for name in SPECIAL_NAMES:
        any_root.write_bytes(f"a/{name}", name.encode())
        any_root.copy_file(f"a/{name}", f"b/{name}")
    any_root.write_bytes("a/other", b"")
    for name in SPECIAL_NAMES:
        any_root.delete(f"a/{name}")
    assert any_root.list_names("a") == ["other"]
    assert {name: any_root.read_bytes(f"b/{name}") for name in SPECIAL_NAMES} == {
        name: name.encode() for name in SPECIAL_NAMES
    }


def test_nothing_is_listed_where_nothing_is(any_root):
    any_root.write_bytes("jobs/1/state", b"")
    for prefix in ("missing", "jobs/1/missing", "jobs/1/sta"):
        assert any_root.list_names(prefix) == []
        assert any_root.list_files(prefix) == {}
    assert any_root.list_names("jobs/1/state") == []


def test_names_below_a_prefix_are_those_of_one_level(any_root):
    for key in ("jobs/1/state", "jobs/1/logs/0", "jobs/1/logs/1", "jobs/10/state", "jobs.json"):
        any_root.write_bytes(key, b"x")
    assert any_root.list_names("") == ["jobs", "jobs.json"]
    assert any_root.list_names("jobs") == ["1", "10"]
    assert any_root.list_names("jobs/1") == ["logs", "state"]
    assert any_root.list_files("jobs/1") == {"logs/0": 1, "logs/1": 1, "state": 1}


# Servers of S3 list 1000 keys at a time and delete as many; rclone writes so many the fastest.
def test_more_names_than_one_answer_holds_are_listed_and_deleted(rclone_server, set_variables):
    set_variables(rclone_server.environment)
    root = StorageRoot(rclone_server.make_uri("tests/many-names"))
    names = [f"{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(NUM_RACERS) as pool:
        list(pool.map(lambda name: root.write_bytes(f"many/{name}", b""), names))
    assert root.list_names("many") == names
    assert root.list_files("many") == dict.fromkeys(names, 0)
    root.delete("many")
    assert root.list_files("") == {}


def test_delete_takes_what_is_below_a_key_and_nothing_beside_it(any_root):
    for key in ("a/1", "a/2/3", "ab/1", "a.json", "b/a/1"):
        any_root.write_bytes(key, b"")
    any_root.delete("a")
    assert any_root.list_files("") == {"ab/1": 0, "a.json": 0, "b/a/1": 0}
    any_root.delete("a")
    any_root.delete("missing/key")
    assert any_root.list_files("") == {"ab/1": 0, "a.json": 0, "b/a/1": 0}


def test_nothing_outside_the_root_can_be_named(any_root):
    for operation in (any_root.read_bytes, any_root.delete, any_root.list_files):
        with pytest.raises(StorageError):
            operation("../other/key")


def test_a_copy_is_a_key_of_its_own(any_root):
    any_root.write_bytes("a/model.pt", b"weights")
    any_root.copy_file("a/model.pt", "b/c/model.pt")
    any_root.write_bytes("a/model.pt", b"newer weights")
    assert any_root.read_bytes("b/c/model.pt") == b"weights"
    any_root.copy_file("a/model.pt", "b/c/model.pt")
    any_root.delete("a")
    assert any_root.read_bytes("b/c/model.pt") == b"newer weights"
    with pytest.raises(NotFoundError):
        any_root.copy_file("a/model.pt", "d/model.pt")
    assert any_root.list_files("") == {"b/c/model.pt": 13}


@pytest.mark.parametrize("storage", EVERY_KIND, indirect=True)
def test_a_key_is_created_only_once(any_root):
    assert any_root.create_exclusive("jobs/1/claim", b"first") is True
    assert any_root.create_exclusive("jobs/1/claim", b"second") is False
    assert any_root.read_bytes("jobs/1/claim") == b"first"


@pytest.mark.parametrize("storage", EVERY_KIND, indirect=True)
def test_only_one_of_many_threads_creates_a_key(any_root, storage):
    if storage == "memory" or getattr(storage, "name", "") == "rclone":
        pytest.skip("not for threads (memory), or no conditional writes (rclone)")
    for number in range(5):
        barrier = threading.Barrier(NUM_RACERS)

        def create(racer: int, key: str = f"jobs/{number}/claim", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return any_root.create_exclusive(key, str(racer).encode())

        with ThreadPoolExecutor(NUM_RACERS) as pool:
            created = list(pool.map(create, range(NUM_RACERS)))
        assert created.count(True) == 1
        assert any_root.read_bytes(f"jobs/{number}/claim") == str(created.index(True)).encode()


def test_readers_see_the_old_or_the_new_content_while_it_is_replaced(any_root):
    contents = [letter * 200_000 for letter in (b"a", b"b", b"c")]
    any_root.write_bytes("state", contents[0])
    has_written = threading.Event()
    seen = set()

    def read() -> None:
        while not has_written.is_set():
            seen.add(any_root.read_bytes("state"))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for content in contents * 5:
        any_root.write_bytes("state", content)
    has_written.set()
    for reader in readers:
        reader.join()
    assert seen
    assert seen <= set(contents)


def test_a_writable_root_keeps_no_trace_of_the_check(any_root):
    any_root.check_writable()
    assert any_root.list_files("") == {}


def test_a_root_that_travelled_to_another_process_reaches_the_same_keys(any_root, storage):
    if storage == "memory":
        pytest.skip("memory stays in its process")
    any_root.write_bytes("key", b"content")
    assert pickle.loads(pickle.dumps(any_root)).read_bytes("key") == b"content"


def test_arrow_reads_a_key_under_the_root(any_root):
    any_root.write_bytes("checkpoints/a/files/model.pt", b"weights")
    with open_arrow_filesystem(any_root).open_input_stream(any_root.path_of("checkpoints/a/files/model.pt")) as stream:
        assert stream.read() == b"weights"
