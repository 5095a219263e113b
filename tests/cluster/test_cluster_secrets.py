"""A cluster's key and token: made once, for each cluster of each storage root, and nobody else reads them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from periflow_ray.cluster import secrets as secrets_module
from periflow_ray.cluster.secrets import DIR_VARIABLE, ClusterSecrets, find_secrets

URI = "s3://bucket/prefix"


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIR_VARIABLE, str(tmp_path / "clusters"))
    # Real keys, of a length that is made at once.
    monkeypatch.setattr(secrets_module, "_KEY_BITS", 1024)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def read_all(secrets: ClusterSecrets) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in secrets.directory.iterdir()}


def test_nobody_else_reads_them_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    secrets = find_secrets(URI, "mine")
    secrets.make()
    assert secrets.are_there
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (secrets.key_path, secrets.token_path)}
    assert modes == {"key": 0o600, "token": 0o600}
    directories = [secrets.directory, *(path for path in secrets.directory.parents if path.is_relative_to(tmp_path))]
    own = [path for path in directories if path != tmp_path]
    assert {stat.S_IMODE(path.stat().st_mode) for path in own} == {0o700}


def test_they_are_made_once() -> None:
    secrets = find_secrets(URI, "mine")
    secrets.make()
    before = read_all(secrets)
    secrets.make()
    assert read_all(secrets) == before


def test_what_is_missing_of_them_is_made() -> None:
    secrets = find_secrets(URI, "mine")
    secrets.make()
    key = secrets.key_path.read_bytes()
    secrets.token_path.unlink()
    assert not secrets.are_there
    secrets.make()
    assert (secrets.are_there, secrets.key_path.read_bytes()) == (True, key)


def test_after_a_making_that_was_cut_off_the_two_halves_of_the_key_fit() -> None:
    secrets = find_secrets(URI, "mine")
    secrets.make()
    secrets.key_path.unlink()
    secrets.make()
    private = load_ssh_private_key(secrets.key_path.read_bytes(), password=None)
    assert load_ssh_public_key(secrets.read_public_key().encode()) == private.public_key()


def test_the_public_key_is_one_line_that_openssh_takes() -> None:
    secrets = find_secrets(URI, "mine")
    secrets.make()
    line = secrets.read_public_key()
    assert "\n" not in line
    assert line.startswith("ssh-rsa ")
    assert line.split()[2:] == ["periflow-ray"]
    private = load_ssh_private_key(secrets.key_path.read_bytes(), password=None)
    assert load_ssh_public_key(line.encode()) == private.public_key()


def test_each_cluster_of_each_storage_root_has_its_own() -> None:
    all_of_them = [find_secrets(URI, "mine"), find_secrets(URI, "other"), find_secrets("s3://bucket/two", "mine")]
    for secrets in all_of_them:
        secrets.make()
    assert len({secrets.directory for secrets in all_of_them}) == 3
    assert len({secrets.token_path.read_text() for secrets in all_of_them}) == 3
    assert len({secrets.key_path.read_text() for secrets in all_of_them}) == 3
    assert find_secrets(URI, "mine") == all_of_them[0]


def test_forgotten_they_are_gone_and_others_stay() -> None:
    mine, other = find_secrets(URI, "mine"), find_secrets(URI, "other")
    for secrets in (mine, other):
        secrets.make()
    (mine.directory / "up.log").write_text("all that Ray said")
    mine.forget()
    mine.forget()
    assert not mine.directory.exists()
    assert other.are_there


def test_a_directory_that_others_may_write_to_is_not_trusted() -> None:
    secrets = find_secrets(URI, "mine")
    secrets.directory.mkdir(parents=True)
    secrets.directory.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write to it"):
        secrets.make()
    assert read_all(secrets) == {}
