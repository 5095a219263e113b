from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from periflow_ray.credentials import (
    Credential,
    create_credential,
    credentials_path,
    delete_credential,
    list_credentials,
    read_credential,
)
from periflow_ray.credentials.credential_types import secret_values
from periflow_ray.errors import NotFoundError, StorageError, UsageError

S3 = {"access_key_id": "AKIA0", "secret_access_key": "s3cr3t"}
KEY_FILE = {"type": "service_account", "client_email": "ada@example.com", "private_key": "k3y"}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "credentials.json"
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(path))
    return path


def test_a_credential_is_read_by_its_name():
    created = create_credential("team-s3", "s3", {**S3, "region": " eu-west-1\n"})
    assert read_credential("team-s3") == created
    assert (created.name, created.type) == ("team-s3", "s3")
    assert created.values == {**S3, "region": "eu-west-1"}
    assert created.shown_values == {"access_key_id": "AKIA0", "region": "eu-west-1"}


def test_the_file_is_in_the_users_configuration_unless_the_variable_names_another(tmp_path, monkeypatch, path):
    assert credentials_path() == path
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PERIFLOW_CREDENTIALS_FILE")
    assert credentials_path() == tmp_path / "xdg" / "periflow-ray" / "credentials.json"


def test_only_the_user_can_read_the_file_and_its_directory(path):
    before = os.umask(0)
    try:
        create_credential("team-s3", "s3", S3)
    finally:
        os.umask(before)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert sorted(each.name for each in path.parent.iterdir()) == ["credentials.json", "credentials.json.lock"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_open_is_refused(path, mode):
    create_credential("team-s3", "s3", S3)
    path.chmod(mode)
    for use in (
        lambda: read_credential("team-s3"),
        list_credentials,
        lambda: delete_credential("team-s3"),
        lambda: create_credential("other", "s3", S3),
    ):
        with pytest.raises(StorageError) as caught:
            use()
        assert str(caught.value) == (
            f"the credentials in '{path}' may be read by others (mode {mode:04o}). Take that right away: "
            f"chmod 600 '{path}'; and replace the keys if somebody else uses this machine."
        )
    path.chmod(0o600)
    assert [each.name for each in list_credentials()] == ["team-s3"]


def test_no_repr_shows_a_value():
    credential = create_credential("team-s3", "s3", S3)
    assert repr(credential) == f"Credential(name='team-s3', type='s3', created_unix_s={credential.created_unix_s})"
    assert "s3cr3t" not in f"{credential} {[credential]}"


def test_a_link_to_the_file_stays_a_link(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "dotfiles.json")
    create_credential("team-s3", "s3", S3)
    assert path.is_symlink()
    assert read_credential("team-s3").values == S3


def test_an_unknown_name_is_told_with_the_machine_and_the_known_ones(path):
    create_credential("team-s3", "s3", S3)
    create_credential("azure", "azure-blob", {"connection_string": "AccountName=a;AccountKey=b"})
    with pytest.raises(NotFoundError) as caught:
        read_credential("tem-s3")
    assert str(caught.value) == (
        f"credential 'tem-s3' does not exist in '{path}' on machine '{platform.node()}'. Did you mean 'team-s3'? "
        "Known there: azure, team-s3. Create it on that machine: periflow-ray credential create tem-s3 --type TYPE"
    )


def test_without_a_file_there_are_no_credentials(path):
    assert list_credentials() == []
    with pytest.raises(NotFoundError, match="Known there: none"):
        read_credential("any")
    with pytest.raises(NotFoundError):
        delete_credential("any")
    assert not path.parent.exists()


def test_a_name_is_taken_until_it_is_deleted_or_replaced():
    create_credential("team", "s3", S3)
    with pytest.raises(UsageError) as caught:
        create_credential("team", "wandb", {"api_key": "k"})
    assert str(caught.value) == (
        "credential 'team' already exists. Give it other values: periflow-ray credential edit team"
    )
    create_credential("team", "s3", {**S3, "secret_access_key": "n3w"}, is_replacement=True)
    assert read_credential("team").values["secret_access_key"] == "n3w"
    delete_credential("team")
    assert list_credentials() == []
    with pytest.raises(NotFoundError):
        create_credential("team", "s3", S3, is_replacement=True)


@pytest.mark.parametrize("name", ["", "a/b", "-x", "ä", "a b", "x" * 65, "a\n"])
def test_a_name_has_letters_digits_and_few_other_characters(name):
    with pytest.raises(UsageError, match=r"^credential name .* cannot be used: "):
        create_credential(name, "s3", S3)


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("s3", {**S3, "session_token": "t", "endpoint_url": "http://127.0.0.1:9000"}),
        ("azure-blob", {"account_name": "acc", "account_key": "k"}),
        ("azure-blob", {"account_name": "acc", "sas_token": "?sv=1"}),
        ("azure-blob", {"connection_string": "AccountName=a;AccountKey=b"}),
        ("docker", {"username": "ada", "password": "p"}),
        ("docker", {"username": "ada", "password": "p", "registry": "registry.example.com"}),
        ("slack", {"token": "xoxb"}),
        ("slack", {"webhook_url": "https://hooks.example.com/a"}),
        ("webhook", {"url": "https://example.com/hook?key=k"}),
        ("webhook", {"url": "http://example.com", "authorization": "Bearer k"}),
        ("wandb", {"api_key": "k"}),
    ],
)
def test_each_type_has_its_values(type_name: str, values: dict[str, str]):
    assert create_credential("name", type_name, values).values == values


def test_a_service_accounts_key_is_taken_as_text_or_as_a_mapping():
    for given in (KEY_FILE, json.dumps(KEY_FILE, indent=2)):
        created = create_credential("models", "gcs", {"service_account_json": given})
        assert json.loads(created.values["service_account_json"]) == KEY_FILE
        delete_credential("models")


@pytest.mark.parametrize(
    ("type_name", "values", "message"),
    [
        (
            "s4",
            S3,
            "credential type 's4' is unknown. Did you mean 's3'? "
            "Types: s3, azure-blob, gcs, docker, slack, webhook, wandb",
        ),
        (
            "s3",
            {**S3, "secret_acess_key": "hunter2"},
            "a credential of type 's3' has no value 'secret_acess_key'. Did you mean 'secret_access_key'? "
            "Values: access_key_id, secret_access_key, session_token, region, endpoint_url",
        ),
        (
            "s3",
            {"access_key_id": "hunter2"},
            "a credential of type 's3' is made of access_key_id and secret_access_key; given: access_key_id.",
        ),
        (
            "azure-blob",
            {"account_name": "acc", "account_key": "hunter2", "sas_token": "hunter2"},
            "a credential of type 'azure-blob' is made of connection_string, or account_name and account_key, or "
            "account_name and sas_token; given: account_name and account_key and sas_token.",
        ),
        ("wandb", {}, "a credential of type 'wandb' is made of api_key; given: none of them."),
        ("wandb", {"api_key": " "}, "'api_key' must be text on one line, and not empty."),
        ("wandb", {"api_key": "hunter2\nhunter2"}, "'api_key' must be text on one line, and not empty."),
        ("wandb", {"api_key": 5}, "'api_key' must be text on one line, and not empty."),
        (
            "s3",
            {**S3, "endpoint_url": "127.0.0.1:9000"},
            "'endpoint_url' must be a URL that starts with http:// or https://",
        ),
        (
            "s3",
            {**S3, "endpoint_url": "http://ada:hunter2@127.0.0.1"},
            "'endpoint_url' must not hold a login; give the keys as values of their own.",
        ),
        (
            "gcs",
            {"service_account_json": '{"private_key": "hunter2"}'},
            "'service_account_json' must be the JSON of a service account's key: an object with "
            '"type": "service_account".',
        ),
    ],
)
def test_what_cannot_be_used_is_refused_without_repeating_a_value(
    path: Path, type_name: str, values: dict[str, str], message: str
):
    with pytest.raises(UsageError) as caught:
        create_credential("name", type_name, values)
    assert str(caught.value) == message
    assert "hunter2" not in message
    assert not path.exists()


def test_a_place_that_cannot_hold_a_file_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "file" / "credentials.json"))
    with pytest.raises(StorageError) as caught:
        create_credential("team-s3", "s3", S3)
    assert str(tmp_path / "file" / "credentials.json") in str(caught.value)


def test_creations_at_the_same_time_lose_nothing():
    script = (
        "import sys\nfrom periflow_ray.credentials import create_credential\n"
        "for number in range(20):\n"
        "    create_credential(f'{sys.argv[1]}-{number}', 'wandb', {'api_key': 'k'})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    known = list_credentials()
    assert {each.name for each in known} == {f"{name}-{number}" for name in "abc" for number in range(20)}
    assert all(isinstance(each, Credential) and each.values == {"api_key": "k"} for each in known)


def test_the_keys_in_an_environment_are_known():
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AZURE_CLIENT_SECRET": "cl13nt",
        "AZURE_STORAGE_ACCOUNT": "ours",
        "GOOGLE_APPLICATION_CREDENTIALS": "/keys/key.json",
        "WANDB_API_KEY": "",
        "HOME": "/ada",
    }
    assert secret_values(environ) == ["s3cr3t", "cl13nt"]
