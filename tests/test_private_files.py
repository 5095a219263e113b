"""Nobody else reads or replaces what is this user's, whatever the umask, and whoever came first in /tmp."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from periflow_ray.credentials import create_credential
from periflow_ray.credentials.stored import CREDENTIALS_FILE_VARIABLE
from periflow_ray.jobs.sealed_secrets import seal
from periflow_ray.private_files import is_own_directory, make_own_directory, make_private_directories
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.ray_train.train_run import keep_token_private
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import upload_file
from periflow_ray.submit.local_cluster import LocalCluster, LocalClusterDir


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: str | os.PathLike[str]) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def open_directories(below: Path) -> list[Path]:
    """The directories on the way to each file that others may look into."""
    return [path for path in below.rglob("*") if path.is_dir() and mode_of(path) & 0o077]


def test_every_level_that_is_made_is_for_this_user_alone(tmp_path, umask):
    make_private_directories(tmp_path / "a" / "b" / "c")
    assert open_directories(tmp_path) == []
    make_private_directories(tmp_path / "a" / "b")


def test_sandboxes_are_for_this_user_alone(tmp_path, umask, monkeypatch):
    monkeypatch.setattr(sandbox_module, "_base_dir", lambda: tmp_path / "periflow-0")
    sandbox = Sandbox("/storage", 1, 0)
    sandbox.create("one")
    sandbox.create("one")
    assert open_directories(tmp_path) == []
    sandbox.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_clusters_directory_and_token_are_for_this_user_alone(tmp_path, umask):
    directory = LocalClusterDir(tmp_path / "state" / "periflow-ray" / "local-cluster")
    with directory.lock("tests"):
        directory.create_token()
    assert open_directories(tmp_path) == []
    assert mode_of(directory.token_path) == 0o600


def test_credentials_and_cached_datasets_are_for_this_user_alone(tmp_path, umask, monkeypatch):
    monkeypatch.setenv(CREDENTIALS_FILE_VARIABLE, str(tmp_path / "config" / "periflow-ray" / "credentials.json"))
    create_credential("hook", "webhook", {"url": "https://example.com/x"})
    DatasetCache(tmp_path / "cache" / "datasets").open("key", lambda target: None).close()
    levels = [
        tmp_path / "config",
        tmp_path / "config" / "periflow-ray",
        tmp_path / "cache",
        tmp_path / "cache/datasets",
    ]
    assert [mode_of(level) for level in levels] == [0o700] * 4
    assert mode_of(tmp_path / "config" / "periflow-ray" / "credentials.json") == 0o600


@pytest.mark.parametrize(
    "write",
    [
        lambda root, path: root.write_bytes("jobs/1/job.json", b""),
        lambda root, path: root.create_exclusive("jobs/1/job.json", b""),
        lambda root, path: root.check_writable(),
        lambda root, path: upload_file(root, path, "datasets/one/file"),
        lambda root, path: seal(root, 1, {"TOKEN": "value"}),
    ],
)
def test_a_storage_root_that_is_made_is_for_this_user_alone(tmp_path, umask, write):
    source = tmp_path / "source"
    source.write_bytes(b"content")
    write(StorageRoot(str(tmp_path / "data" / "storage")), source)
    assert [mode_of(tmp_path / "data"), mode_of(tmp_path / "data" / "storage")] == [0o700, 0o700]


@pytest.mark.parametrize(("mode", "private_mode"), [(0o755, 0o600), (0o700, 0o600), (0o775, 0o660), (0o777, 0o666)])
def test_values_are_read_by_those_who_may_write_to_the_root(tmp_path, mode, private_mode):
    before = os.umask(0)
    try:
        tmp_path.chmod(mode)
        seal(StorageRoot(str(tmp_path)), 1, {"TOKEN": "value"})
        assert mode_of(tmp_path / "jobs" / "1" / "secrets.sealed") == private_mode
    finally:
        os.umask(before)
        tmp_path.chmod(0o700)


def test_a_directory_that_others_made_or_may_change_is_not_used(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link, file, writable, foreign = (tmp_path / name for name in ("link", "file", "writable", "foreign"))
    link.symlink_to(elsewhere)
    file.touch()
    writable.mkdir()
    writable.chmod(0o777)
    for path, reason in ((link, "it is a link"), (file, "it is no directory"), (writable, "others may write to it")):
        with pytest.raises(PermissionError, match=f"'{path}' cannot be trusted: {reason}"):
            make_own_directory(path)
        assert not is_own_directory(path)
    foreign.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match=f"it belongs to user {os.getuid()}"):
        make_own_directory(foreign)


def test_one_of_this_user_that_others_could_only_read_is_taken_back(tmp_path):
    path = tmp_path / "periflow-0"
    path.mkdir()
    path.chmod(0o755)
    make_own_directory(path)
    assert mode_of(path) == 0o700


def test_a_sandbox_below_somebody_elses_directory_is_neither_used_nor_removed(tmp_path, monkeypatch):
    base = tmp_path / "periflow-0"
    monkeypatch.setattr(sandbox_module, "_base_dir", lambda: base)
    sandbox = Sandbox("/storage", 1, 0)
    sandbox.directory.mkdir(parents=True)
    base.chmod(0o777)
    with pytest.raises(PermissionError, match="cannot be trusted"):
        sandbox.create("claim")
    sandbox.remove()
    assert sandbox.directory.exists()


def test_an_embedded_cluster_of_somebody_else_is_not_talked_to(tmp_path):
    directory = LocalClusterDir(tmp_path / "cluster")
    with directory.lock("tests"):
        directory.write(LocalCluster("http://127.0.0.1:1", os.getpid()))
    assert directory.read() == LocalCluster("http://127.0.0.1:1", os.getpid())
    directory.path.chmod(0o777)
    assert directory.read() is None
    with pytest.raises(PermissionError, match="cannot be trusted"), directory.lock("tests"):
        pass


@pytest.mark.parametrize("is_there", [False, True])
def test_rays_token_is_for_this_user_alone(tmp_path, umask, monkeypatch, is_there):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    if is_there:
        path.parent.mkdir()
        path.write_text("given")
    keep_token_private()
    assert mode_of(path) == 0o600
    assert (path.read_text() == "given") == is_there
    keep_token_private()


@pytest.mark.parametrize(
    "variables", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_TOKEN_PATH": "/run/token"}]
)
def test_no_token_is_made_that_ray_would_not_make(tmp_path, monkeypatch, variables):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    keep_token_private()
    assert list(tmp_path.iterdir()) == []
