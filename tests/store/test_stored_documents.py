"""Every kind of stored document: with more, with less, cut short, and of a format that is still to come."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from document_kinds import FREE_FIELDS, KINDS, NAMED_FIELDS, PLAN, Kind, attempt

from periflow_ray import __version__
from periflow_ray.errors import DamagedDocumentError, NewerFormatError
from periflow_ray.jobs import JobProgress, read_progress, read_record, read_state
from periflow_ray.jobs.attempts import read_attempts, write_attempt
from periflow_ray.plan import JobPlan
from periflow_ray.store.datasets import list_dataset_files, read_dataset, upload_dataset
from periflow_ray.store.datasets.files import DatasetFile
from periflow_ray.store.documents import dump_document, parse_document, parse_entries, read_document
from periflow_ray.store.root import StorageRoot

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def find_key(root: StorageRoot, kind: Kind) -> str:
    """The document's key; a request's has a random name."""
    return kind.key if kind.key.endswith(".json") else f"{kind.key}/{root.list_names(kind.key)[0]}"


def add_fields(document: Any) -> Any:
    """The document as a later version might write it, with a field more in every object."""
    if isinstance(document, list):
        return [add_fields(entry) for entry in document]
    if not isinstance(document, dict):
        return document
    known = {name: add_to_field(name, value) for name, value in document.items()}
    return {**known, "of_a_later_version": {"a": [1]}}


def add_to_field(name: str, value: Any) -> Any:
    if name in NAMED_FIELDS:
        return {key: add_fields(entry) for key, entry in value.items()}
    return value if name in FREE_FIELDS else add_fields(value)


def check_refused(kind: Kind, root: StorageRoot, key: str, expected: object) -> str:
    """Read what cannot be read, and return the error's text; empty where there is to be none."""
    if isinstance(expected, type) and issubclass(expected, Exception):
        with pytest.raises(expected) as caught:
            kind.read(root)
        assert key in str(caught.value)
        return str(caught.value)
    assert kind.read(root) == expected
    return ""


@every_kind
def test_a_document_says_its_format(local_root, kind):
    kind.write(local_root)
    assert json.loads(local_root.read_bytes(find_key(local_root, kind)))["format"] == 1


@every_kind
def test_a_document_without_a_format_has_the_first_one(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    content = local_root.read_bytes(key)
    expected = kind.read(local_root)
    document = json.loads(content)
    del document["format"]
    local_root.write_json(key, document)
    assert kind.read(local_root) == expected


@every_kind
def test_fields_of_a_later_version_are_ignored_at_every_level(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    content = local_root.read_bytes(key)
    expected = kind.read(local_root)
    local_root.write_json(key, add_fields(json.loads(content)))
    assert kind.read(local_root) == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.needs], ids=lambda kind: kind.key)
def test_a_field_that_is_missing_is_named_with_the_documents_key(local_root, kind):
    kind.write(local_root)
    document = inner = json.loads(local_root.read_bytes(kind.key))
    *path, name = kind.needs
    for step in path:
        inner = inner[step]
    del inner[name]
    local_root.write_json(kind.key, document)
    text = check_refused(kind, local_root, kind.key, kind.damaged)
    assert f" is damaged: it has no '{kind.named}'" in text


@every_kind
def test_a_document_that_was_cut_short_is_named(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    content = local_root.read_bytes(key)
    for num_bytes in range(0, len(content), max(1, len(content) // 100)):
        local_root.write_bytes(key, content[:num_bytes])
        check_refused(kind, local_root, key, kind.damaged)


@every_kind
@pytest.mark.parametrize(
    "content",
    [b"null", b"3", b'"text"', b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": "new"}', b'{"format": 0}', b"\0" * 512],
    ids=["null", "number", "text", "list", "bytes", "nested", "format text", "format 0", "zeros"],
)
def test_what_is_no_document_at_all_is_named(local_root, kind, content):
    kind.write(local_root)
    key = find_key(local_root, kind)
    local_root.write_bytes(key, content)
    check_refused(kind, local_root, key, kind.damaged)


@every_kind
def test_a_newer_format_is_refused_with_what_reads_it(local_root, kind):
    kind.write(local_root)
    key = find_key(local_root, kind)
    # Nothing else in it need be known.
    local_root.write_json(key, {"format": 2, "format_since": "0.4.0", "state": 3})
    text = check_refused(kind, local_root, key, kind.too_new)
    assert not text or text.endswith(
        f" has format 2, and this version of periflow-ray ({__version__}) reads format 1. "
        "Version 0.4.0 or later reads it: pip install --upgrade periflow-ray"
    )


def test_an_error_names_the_root_and_says_what_to_do(root):
    root.write_bytes("jobs/1/state.json", b'{"status": "runn')
    with pytest.raises(DamagedDocumentError) as caught:
        read_state(root, 1)
    assert str(caught.value) == (
        f"'jobs/1/state.json' in storage root '{root.uri}' is damaged: Unterminated string starting at: "
        "line 1 column 12 (char 11). Put a copy of it back, or delete it."
    )


def test_a_document_that_lacks_much_is_told_in_one_line(root):
    root.write_json("jobs/1/job.json", {"format": 1, "job_id": 1})
    with pytest.raises(DamagedDocumentError) as caught:
        read_record(root, 1)
    assert "is damaged: it has no 'name', it has no 'experiment', it has no 'vm', and 6 more. Put" in str(caught.value)


@pytest.mark.parametrize("save", [3, "none", [1], True])
def test_a_part_that_is_no_object_is_named(root, save):
    write_attempt(root, 1, attempt())
    document = root.read_json("jobs/1/attempts/1.json")
    root.write_json("jobs/1/attempts/1.json", {**document, "save": save})
    with pytest.raises(DamagedDocumentError, match=r"attempts/1.json' .* is damaged: 'save' is .*, not a JSON object"):
        read_attempts(root, 1)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("started_unix_s", None, "'started_unix_s' is null, not a number"),
        ("last_step", "5", "'last_step' is a text, not a number"),
        ("text", 3, "'text' is a number, not a text"),
        ("save", {"notice_s": [], "step": 5, "save_time_s": 1.0}, "'save.notice_s' is a list, not a number"),
    ],
)
def test_a_value_that_is_neither_number_nor_text_where_one_belongs_is_named(root, name, value, reason):
    write_attempt(root, 1, attempt())
    root.write_json("jobs/1/attempts/1.json", {**root.read_json("jobs/1/attempts/1.json"), name: value})
    with pytest.raises(DamagedDocumentError) as caught:
        read_attempts(root, 1)
    assert f" is damaged: {reason}. Put" in str(caught.value)


def test_numbers_may_be_whole_or_not_and_what_may_be_missing_may_be_null(root):
    document = {"step": 5.0, "total_train_steps": 1e4, "steps_per_s": None, "metrics": {"phase": "train", "loss": None}}
    root.write_json("jobs/1/progress.json", document)
    assert read_progress(root, 1) == JobProgress(5, 10_000, None, {"phase": "train", "loss": None})


def test_a_value_that_a_plan_cannot_have_is_named(root):
    document = {**json.loads(dump_document(PLAN)), "launch_mode": "rack"}
    root.write_json("jobs/1/plan.json", document)
    with pytest.raises(DamagedDocumentError, match=r"plan.json' .* is damaged: 'launch_mode': Input should be 'node'"):
        read_document(root, "jobs/1/plan.json", JobPlan)


@dataclass(frozen=True)
class Paper:
    title: str
    tags: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class PaperOfTomorrow:
    """The same kind, changed so that nobody reads it by the old rules."""

    FORMAT: ClassVar[int] = 2
    FORMAT_SINCE: ClassVar[str] = "0.4.0"

    title_in_parts: tuple[str, ...] = ()
    title: str | None = None


def test_a_kind_whose_format_went_up_says_since_when_and_still_reads_the_old_one():
    old, new = Paper("Adam"), PaperOfTomorrow(("Ad", "am"))
    assert json.loads(dump_document(new)) == {
        "format": 2,
        "format_since": "0.4.0",
        "title_in_parts": ["Ad", "am"],
        "title": None,
    }
    assert parse_document(PaperOfTomorrow, dump_document(old), "'paper'") == PaperOfTomorrow(title="Adam")
    with pytest.raises(NewerFormatError, match=r"^'paper' has format 2, .* Version 0\.4\.0 or later reads it"):
        parse_document(Paper, dump_document(new), "'paper'")
    with pytest.raises(NewerFormatError, match=r"format 3, .* reads formats 1 to 2\. A later version reads it"):
        parse_document(PaperOfTomorrow, b'{"format": 3}', "'paper'")


def test_the_files_of_a_dataset_are_a_list_whose_entries_age_like_documents(root):
    files = (DatasetFile("a", 1, "xxh3:1"), DatasetFile("b", 2))
    entries = [{"path": "a", "size": 1, "checksum": "xxh3:1", "mode": "0644"}, {"path": "b", "size": 2}]
    assert parse_entries(DatasetFile, json.dumps(entries).encode(), "'files.json'") == files
    for content, reason in (
        (json.dumps([*entries, {"path": "c"}]).encode(), r"it has no '\[2\].size'"),
        (b"[3]", r"'\[0\]' is a number, not a JSON object"),
        (b"{}", "it is an object, not a list"),
        (json.dumps(entries).encode()[:40], "Unterminated string"),
    ):
        with pytest.raises(DamagedDocumentError, match=f"^'files.json' is damaged: {reason}"):
            parse_entries(DatasetFile, content, "'files.json'")
    with pytest.raises(NewerFormatError, match=r"^'files\.json' has format 2, "):
        parse_entries(DatasetFile, b'{"format": 2, "files": []}', "'files.json'")


def test_a_dataset_whose_list_of_files_is_damaged_is_named(local_root, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")
    upload_dataset(local_root, "pets", tmp_path / "source", contents_only=True)
    local_root.write_bytes("datasets/pets/files.json", b'[{"path": "a"')
    with pytest.raises(DamagedDocumentError, match=r"^'datasets/pets/files\.json' in storage root "):
        list_dataset_files(local_root, read_dataset(local_root, "pets"))
