from __future__ import annotations

import os
from pathlib import Path

import pytest

from periflow_ray.credentials.cloud_environment import (
    read_shell_environment,
    set_cloud_environment,
    write_shell_environment,
)
from periflow_ray.errors import StorageError


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of the shell that submits; this process is the driver on a cluster that another shell started."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the other shell")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of the other shell")
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    monkeypatch.setenv("AWS_PROFILE", "to be restored after the test")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "to be restored after the test")
    no_cloud = {"HOME": "/ada", "SECRET": "not for a cloud", "BYTES": "\udcff", "EMPTY": ""}
    return {"AWS_PROFILE": "team", "AZURE_STORAGE_ACCOUNT": "acc", **no_cloud}


def test_the_driver_sees_the_cloud_variables_of_the_submitting_shell_and_no_others(tmp_path, monkeypatch, shell):
    path = write_shell_environment(tmp_path / "cloud", shell)
    monkeypatch.setenv("PERIFLOW_CLOUD_ENV_FILE", str(path))
    home = os.environ.get("HOME")
    # All of them are for the command.
    assert read_shell_environment() == {**shell, "PERIFLOW_CREDENTIALS_FILE": str(tmp_path / "credentials.json")}
    clouds = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
    assert clouds == {"AWS_PROFILE": "team", "AZURE_STORAGE_ACCOUNT": "acc"}
    assert (os.environ.get("HOME"), os.environ.get("SECRET")) == (home, None)
    assert os.environ["PERIFLOW_CREDENTIALS_FILE"] == str(tmp_path / "credentials.json")


def test_the_file_is_for_this_user_only_and_is_read_once(tmp_path, monkeypatch, shell):
    before = os.umask(0)
    try:
        path = write_shell_environment(tmp_path / "cloud", shell)
    finally:
        os.umask(before)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    monkeypatch.setenv("PERIFLOW_CLOUD_ENV_FILE", str(path))
    read_shell_environment()
    assert list(path.parent.iterdir()) == []
    assert "PERIFLOW_CLOUD_ENV_FILE" not in os.environ
    assert read_shell_environment() == {}


def test_the_drivers_own_variables_are_given_to_no_other_process(tmp_path, monkeypatch, shell):
    path = write_shell_environment(tmp_path / "cloud", {"AWS_PROFILE": "team"}, {"PERIFLOW_SECRETS_KEY": "the-key"})
    monkeypatch.setenv("PERIFLOW_CLOUD_ENV_FILE", str(path))
    monkeypatch.setenv("PERIFLOW_SECRETS_KEY", "to be removed after the test")
    assert sorted(read_shell_environment()) == ["AWS_PROFILE", "PERIFLOW_CREDENTIALS_FILE"]
    assert os.environ["PERIFLOW_SECRETS_KEY"] == "the-key"


def test_files_that_variables_name_are_found_from_another_directory(tmp_path, monkeypatch, shell):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", "own.json")
    shell |= {"AWS_CONFIG_FILE": "~/aws", "GOOGLE_APPLICATION_CREDENTIALS": "key.json", "AWS_CA_BUNDLE": "/etc/ca"}
    monkeypatch.setenv("PERIFLOW_CLOUD_ENV_FILE", str(write_shell_environment(tmp_path / "cloud", shell)))
    for name in ("AWS_CONFIG_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "to be restored after the test")
    read_shell_environment()
    assert {name: os.environ[name] for name in ("AWS_CONFIG_FILE", "AWS_CA_BUNDLE")} == {
        "AWS_CONFIG_FILE": "~/aws",
        "AWS_CA_BUNDLE": "/etc/ca",
    }
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(tmp_path / "key.json")
    assert os.environ["PERIFLOW_CREDENTIALS_FILE"] == str(tmp_path / "own.json")


def test_without_a_file_nothing_changes(shell):
    before = dict(os.environ)
    set_cloud_environment(read_shell_environment())
    assert dict(os.environ) == before


def test_a_file_that_is_gone_is_an_error(tmp_path, monkeypatch, shell):
    monkeypatch.setenv("PERIFLOW_CLOUD_ENV_FILE", str(tmp_path / "gone.json"))
    with pytest.raises(StorageError) as caught:
        read_shell_environment()
    assert str(caught.value) == (
        f"the variables of the submitting shell cannot be read from '{tmp_path}/gone.json' (FileNotFoundError). "
        "Submit the job again."
    )
