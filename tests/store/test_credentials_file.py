"""The file of credentials as a document: damaged, of an earlier version, and of a later one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from periflow_ray import __version__
from periflow_ray.credentials import (
    Credential,
    create_credential,
    delete_credential,
    list_credentials,
    read_credential,
)
from periflow_ray.errors import NewerFormatError, StorageError

S3 = {"access_key_id": "AKIA0", "secret_access_key": "s3cr3t"}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "credentials.json"
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(path))
    return path


def write_private(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    path.chmod(0o600)


@pytest.mark.parametrize(
    "content",
    [
        "not json: hunter2",
        '{"credentials": {"a": {"type": "wandb", "created_unix_s": 1, "values": {"api_key": "hunter2"',
        "[]",
        '{"credentials": ["hunter2"]}',
        '{"credentials": {"a": {"type": "wandb", "created_unix_s": 1, "values": "hunter2"}}}',
    ],
)
def test_a_damaged_file_is_told_without_its_content_and_never_overwritten(path, content):
    write_private(path, content)
    for use in (list_credentials, lambda: create_credential("team-s3", "s3", S3)):
        with pytest.raises(StorageError) as caught:
            use()
        assert str(caught.value).startswith(f"the credentials file '{path}' is damaged: ")
        assert str(caught.value).endswith(". Restore the file, or delete it and create the credentials again.")
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert path.read_text() == content


def test_a_file_that_an_earlier_version_wrote_without_a_format_is_read_and_gets_one(path):
    stored = {"type": "wandb", "created_unix_s": 1.0, "values": {"api_key": "k"}}
    write_private(path, json.dumps({"credentials": {"team": stored}}))
    assert list_credentials() == [Credential("team", "wandb", {"api_key": "k"}, 1.0)]
    create_credential("team-s3", "s3", S3)
    written = json.loads(path.read_text())
    assert (written["format"], written["credentials"]["team"]) == (1, stored)


def test_a_file_of_a_later_format_is_refused_with_what_reads_it_and_never_overwritten(path):
    write_private(path, '{"format": 2, "format_since": "0.4.0", "keys": []}')
    for use in (list_credentials, lambda: read_credential("a"), lambda: create_credential("team-s3", "s3", S3)):
        with pytest.raises(NewerFormatError) as caught:
            use()
        assert str(caught.value) == (
            f"the credentials file '{path}' has format 2, and this version of periflow-ray ({__version__}) reads "
            "format 1. Version 0.4.0 or later reads it: pip install --upgrade periflow-ray"
        )
    assert json.loads(path.read_text())["format"] == 2


def test_a_credential_of_a_type_that_came_later_is_kept_and_hides_no_other(path):
    later = {"type": "s9", "created_unix_s": 1.0, "values": {"token": "hunter2"}}
    write_private(path, json.dumps({"format": 1, "credentials": {"later": later}}))
    create_credential("team-s3", "s3", S3)
    assert read_credential("team-s3").values == S3
    assert [(each.name, each.type, dict(each.shown_values)) for each in list_credentials()] == [
        ("later", "s9", {}),
        ("team-s3", "s3", {"access_key_id": "AKIA0"}),
    ]
    assert json.loads(path.read_text())["credentials"]["later"] == later
    with pytest.raises(NewerFormatError) as caught:
        read_credential("later")
    assert str(caught.value) == (
        f"credential 'later' in '{path}' is of type 's9', which this version of periflow-ray ({__version__}) does not "
        "know. A later version does: pip install --upgrade periflow-ray"
    )
    delete_credential("later")
    assert [each.name for each in list_credentials()] == ["team-s3"]
