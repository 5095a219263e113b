from __future__ import annotations

from pathlib import Path

import pytest

from periflow_ray.credentials import create_credential
from periflow_ray.errors import StorageError, UsageError
from periflow_ray.settings import choose_root

S3 = {"access_key_id": "AKIA0", "secret_access_key": "s3cr3t", "region": "eu-west-1"}
BUCKET = "s3://bucket/prefix"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's config file, not yet written; the credentials "team" (s3), "other" (s3) and "az" (azure-blob)."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("PERIFLOW_STORAGE", "PERIFLOW_STORAGE_CREDENTIAL", "PERIFLOW_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("team", "other"):
        create_credential(name, "s3", S3)
    create_credential("az", "azure-blob", {"account_name": "acc", "account_key": "a2V5"})
    return tmp_path / "periflow-ray" / "config.yaml"


def test_the_option_wins_over_the_variable_over_the_config_file(monkeypatch, config):
    assert choose_root(BUCKET).credential is None
    config.write_text(f"storage: {BUCKET}\nstorage_credential: team\n")
    assert (choose_root().root.uri, choose_root().credential) == (BUCKET, "team")
    monkeypatch.setenv("PERIFLOW_STORAGE_CREDENTIAL", "other")
    assert choose_root().credential == "other"
    assert choose_root(credential="team").credential == "team"
    assert choose_root(credential="").credential is None


def test_the_credential_of_the_config_file_is_for_its_root_only(monkeypatch, config):
    config.write_text(f"storage: {BUCKET}\nstorage_credential: team\n")
    assert choose_root("s3://elsewhere").credential is None
    monkeypatch.setenv("PERIFLOW_STORAGE", "s3://elsewhere")
    assert choose_root().credential is None


def test_a_directory_needs_no_credential(monkeypatch, tmp_path):
    monkeypatch.setenv("PERIFLOW_STORAGE_CREDENTIAL", "team")
    assert choose_root(str(tmp_path)).credential is None
    assert choose_root("memory://x").credential is None
    with pytest.raises(UsageError) as caught:
        choose_root(str(tmp_path), "team")
    assert str(caught.value) == (f"storage root '{tmp_path}' needs no credential; leave --storage-credential team out.")


def test_an_unknown_credential_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as caught:
        choose_root(BUCKET, "tema")
    assert str(caught.value).startswith(f"storage root '{BUCKET}': credential 'tema' does not exist in '")
    assert "Did you mean 'team'? Known there: az, other, team." in str(caught.value)


def test_a_credential_of_another_cloud_is_refused():
    with pytest.raises(UsageError) as caught:
        choose_root(BUCKET, "az")
    assert str(caught.value) == (
        f"storage root '{BUCKET}' needs a credential of type s3, and 'az' is of type azure-blob. "
        "List them: periflow-ray credential list"
    )
    assert choose_root("abfs://container", "az").credential == "az"


def test_a_credential_in_the_config_file_is_a_name(config):
    config.write_text(f"storage: {BUCKET}\nstorage_credential: [team]\n")
    with pytest.raises(StorageError) as caught:
        choose_root()
    assert str(caught.value) == f"{config}: storage_credential must be the name of a credential, as text."
