from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator

import botocore.exceptions
import pytest
from support.flaky_storage import FlakyFileSystem, flaky_storage

from periflow_ray.credentials import create_credential
from periflow_ray.errors import StorageError, UsageError
from periflow_ray.settings import resolve_storage_uri
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.backends.azure import AzureBackend
from periflow_ray.store.backends.s3 import S3Backend
from periflow_ray.store.root import StorageRoot


def test_a_writable_root_keeps_no_trace_of_the_check(root):
    root.check_writable()
    assert root.list_files("") == {}


def test_a_root_below_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    for place, reason in (("file", "it is a file, not a directory"), ("file/storage", "Not a directory")):
        with pytest.raises(StorageError) as caught:
            StorageRoot(f"{tmp_path}/{place}").check_writable()
        assert str(caught.value) == f"storage root '{tmp_path}/{place}' is not writable: {reason}"


@pytest.mark.parametrize(
    ("uri", "variable", "value", "address"),
    [
        ("s3://bucket/storage", "AWS_ENDPOINT_URL", "http://127.0.0.1:1", "http://127.0.0.1:1"),
        (
            "abfs://container/storage",
            "AZURE_STORAGE_CONNECTION_STRING",
            "AccountName=a;AccountKey=YWJj;BlobEndpoint=http://127.0.0.1:1/a",
            "127.0.0.1:1",
        ),
    ],
)
def test_a_server_that_is_not_there_is_named(monkeypatch, uri, variable, value, address):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv(variable, value)
    with pytest.raises(StorageError) as caught:
        StorageRoot(uri).check_writable()
    assert str(caught.value) == (
        f"storage root '{uri}' is not writable: no connection to {address}; is the address right, and does the server "
        "run?"
    )


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PERIFLOW_STORAGE_TIMEOUT_S", "0.2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError) as caught:
            StorageRoot("s3://bucket").check_writable()
    assert str(caught.value) == (
        "storage root 's3://bucket' is not writable: no answer in time (PERIFLOW_STORAGE_TIMEOUT_S sets the limit for "
        "slow links)"
    )


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("PERIFLOW_STORAGE_TIMEOUT_S", text)
    with pytest.raises(UsageError) as caught:
        StorageRoot("s3://bucket")
    assert str(caught.value) == (
        f"PERIFLOW_STORAGE_TIMEOUT_S is '{text}'; it must be a number of seconds above 0, for example 60."
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "the storage root's URI is empty; give a directory, s3://bucket/prefix, abfs://..."),
        ("s3://", "storage root 's3://' names no bucket or container: s3://NAME/PREFIX"),
        (
            "abfs://container",
            "storage root 'abfs://container' cannot be opened: no usable account is known; set "
            "AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_NAME, or name a credential",
        ),
    ],
)
def test_a_uri_that_says_too_little_is_refused(uri, message):
    with pytest.raises(StorageError) as caught:
        StorageRoot(uri)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("NoSuchBucket", 404, "the bucket or container does not exist"),
        ("SignatureDoesNotMatch", 403, "the credential is not accepted (SignatureDoesNotMatch)"),
        ("AccessDenied", 403, "access is denied (AccessDenied)"),
        ("SlowDown", 503, "the server answers SlowDown: first line second line"),
    ],
)
def test_what_an_s3_server_answers_becomes_one_plain_line(code, status, reason):
    answer = {
        "Error": {"Code": code, "Message": "first line\nsecond line"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    assert S3Backend.failures.describe(botocore.exceptions.ClientError(answer, "PutObject")) == reason


@pytest.mark.parametrize(
    ("backend", "error", "hints"),
    [
        (S3Backend, "NoCredentialsError", ("'aws configure'", "periflow-ray credential create NAME --type s3")),
        (AzureBackend, "CredentialUnavailableError", ("'az login'", "credential create NAME --type azure-blob")),
    ],
)
def test_a_root_without_keys_says_how_to_log_in(backend, error, hints):
    said = backend.failures.describe(type(error, (Exception,), {})("no keys"))

    assert [hint for hint in hints if hint not in said] == []


def test_a_root_opens_elsewhere_as_it_was_opened_here(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    root = StorageRoot("s3://bucket/storage")
    assert "geheim" not in repr(root) + repr(root.operations)
    content = pickle.dumps(root)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    elsewhere = pickle.loads(content)
    assert (elsewhere.uri, elsewhere.base_path) == ("s3://bucket/storage", "bucket/storage")
    options = elsewhere.filesystem.storage_options
    assert (options["key"], options["secret"], options["endpoint_url"]) == ("key", "geheim", "http://127.0.0.1:1")


def test_a_credential_is_used_by_its_name_and_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    values = {"access_key_id": "key", "secret_access_key": "geheim", "region": "eu-west-1"}
    create_credential("team", "s3", values)
    root = pickle.loads(pickle.dumps(StorageRoot("s3://bucket", "team")))
    options = root.filesystem.storage_options
    assert (options["key"], options["secret"], options["client_kwargs"]) == (
        "key",
        "geheim",
        {"region_name": "eu-west-1"},
    )
    assert "geheim" not in repr(root) + repr(root.operations)
    with pytest.raises(StorageError) as caught:
        StorageRoot("abfs://container", "team")
    assert str(caught.value) == (
        "storage root 'abfs://container' needs one of type azure-blob; credential 'team' is of type s3"
    )


def test_a_local_root_opens_in_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(StorageRoot("storage"))
    monkeypatch.chdir("/")
    assert pickle.loads(content).uri == f"{tmp_path}/storage"


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    with flaky_storage() as filesystem:
        yield filesystem


def test_small_operations_are_tried_again(flaky):
    root = StorageRoot("flaky://bucket/storage")
    flaky.failures["pipe_file"] = [ConnectionResetError()]
    root.write_bytes("state.json", b"{}")
    flaky.failures["cat_file"] = [TimeoutError()]
    assert root.read_json("state.json") == {}


def test_a_claim_whose_answer_was_lost_is_known_by_its_content(flaky):
    root = StorageRoot("flaky://bucket/storage")
    flaky.failures["pipe_file's answer"] = [ConnectionResetError()]
    assert root.create_exclusive("jobs/1/claim", b"mine") is True
    assert root.create_exclusive("jobs/1/claim", b"mine") is False
    # Without content nobody can tell whose it is.
    flaky.failures["pipe_file's answer"] = [ConnectionResetError()]
    assert root.create_exclusive("jobs/2/claim", b"") is False


def test_a_server_that_fails_on_is_named_with_key_and_reason(flaky):
    root = StorageRoot("flaky://bucket/storage")
    flaky.failures["pipe_file"] = [ConnectionResetError(104, "Connection reset by peer")] * 9
    with pytest.raises(StorageError) as caught:
        root.write_bytes("state.json", b"{}")
    assert str(caught.value) == "'state.json' in storage root 'flaky://bucket/storage': Connection reset by peer"
    flaky.failures["info"] = [PermissionError(13, "Permission denied")]
    with pytest.raises(StorageError):
        root.exists("state.json")


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("nfs4://server/export", "nfs4"),
        # fsspec has a file system for it, but nothing here knows what its servers promise.
        ("ftp://server/export", "ftp"),
        ("S3://bucket/prefix", "S3"),
    ],
)
def test_a_scheme_that_nobody_knows_is_refused_and_never_taken_for_another(uri, scheme):
    with pytest.raises(StorageError) as caught:
        StorageRoot(uri)
    assert str(caught.value) == (
        f"storage root '{uri}' cannot be opened: scheme '{scheme}' is unknown. "
        "Schemes: s3, s3a, abfs, abfss, az, gs, gcs, file, local, memory"
    )


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
    with open_arrow_filesystem(root).open_input_stream(root.path_of("checkpoints/a/files/model.pt")) as stream:
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
