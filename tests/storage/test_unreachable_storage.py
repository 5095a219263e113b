"""A storage root that cannot be used says so at once, with its URI and a reason that a user understands."""

from __future__ import annotations

import socket

import pytest
from support.storage_servers import find_free_port, make_azure_environment, make_s3_environment

from periflow_ray.errors import StorageError
from periflow_ray.store.root import StorageRoot

ENVIRONMENTS = [
    pytest.param("s3://periflow/a", make_s3_environment, id="s3"),
    pytest.param("abfs://periflow/a", make_azure_environment, id="azure"),
]
WRONG_KEY = "d3Jvbmc="


def read_reason(root: StorageRoot) -> str:
    with pytest.raises(StorageError) as caught:
        root.check_writable()
    uri_part, reason_part = str(caught.value).split(" is not writable: ")
    assert uri_part == f"storage root '{root.uri}'"
    return reason_part


def test_a_bucket_that_does_not_exist(proxied_server, set_variables):
    set_variables(proxied_server.environment)
    root = StorageRoot(proxied_server.make_uri("a", container="no-such-bucket"))
    assert read_reason(root) == "the bucket or container does not exist"


def test_keys_that_s3_does_not_accept(rclone_server, set_variables):
    set_variables(make_s3_environment(rclone_server.port, WRONG_KEY))
    assert read_reason(StorageRoot("s3://periflow/a")) == "the credential is not accepted (SignatureDoesNotMatch)"


def test_keys_that_azure_does_not_accept(azurite_server, set_variables):
    set_variables(make_azure_environment(azurite_server.port, WRONG_KEY))
    reason = read_reason(StorageRoot("abfs://periflow/a"))
    assert reason in (
        "access is denied (AuthorizationFailure)",
        "the credential is not accepted (AuthenticationFailed)",
    )


@pytest.mark.parametrize(("uri", "make_environment"), ENVIRONMENTS)
def test_a_port_where_nobody_listens(uri, make_environment, set_variables):
    port = find_free_port()
    set_variables(make_environment(port))
    reason = read_reason(StorageRoot(uri))
    assert str(port) in reason
    assert "connect" in reason.lower()


@pytest.mark.parametrize(("uri", "make_environment"), ENVIRONMENTS)
def test_a_server_that_never_answers(uri, make_environment, set_variables, monkeypatch):
    monkeypatch.setenv("PERIFLOW_STORAGE_TIMEOUT_S", "0.3")
    # The kernel accepts the connections, and nobody ever reads from them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_variables(make_environment(silent.getsockname()[1]))
        reason = read_reason(StorageRoot(uri))
    assert reason == "no answer in time (PERIFLOW_STORAGE_TIMEOUT_S sets the limit for slow links)"


@pytest.mark.parametrize(("uri", "make_environment"), ENVIRONMENTS)
def test_no_key_shows_in_a_reason(uri, make_environment, set_variables):
    environment = make_environment(find_free_port())
    set_variables(environment)
    reason = read_reason(StorageRoot(uri))
    assert "tests-secret" not in reason
    assert "AccountKey" not in reason


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert read_reason(StorageRoot(str(tmp_path / "file" / "storage"))) == "Not a directory"


def test_a_file_system_that_is_read_only():
    # Not even the superuser can make a directory there.
    assert read_reason(StorageRoot("/proc/periflow")) == "No such file or directory"
