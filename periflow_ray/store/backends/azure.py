"""Azure Blob Storage: uploads as lists of blocks, and copies on the server."""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES
from periflow_ray.store.backends.backend import Opening, OpenStorage, PartWriter
from periflow_ray.store.backends.fsspec_backend import FsspecBackend
from periflow_ray.store.failures import Answer, Failures
from periflow_ray.store.time_limits import connect_timeout, time_limit

# Limit of the Blob API: 50,000 blocks in a blob.
_MAX_BLOCKS = 50_000
_COPY_POLL_S = 0.2
# adlfs tells files from the placeholders of directories by it.
_FILE_METADATA = {"is_directory": "false"}


def _read_answer(cause: BaseException) -> Answer | None:
    """The answer in an exception of the Azure SDK."""
    status = getattr(cause, "status_code", None)
    if not isinstance(status, int):
        return None
    code: Any = getattr(cause, "error_code", None)
    return Answer(code and str(getattr(code, "value", code)), status)


class AzureBackend(FsspecBackend):
    """Containers by adlfs; see ``Backend``."""

    schemes = ("abfs", "abfss", "az")
    clouds = ("azure", "azure-blob")
    extra = "azure"
    credential_type = CREDENTIAL_TYPES["azure-blob"]
    public_values = frozenset({"account_name"})
    failures = Failures(
        _read_answer,
        no_container=frozenset({"ContainerNotFound"}),
        wrong_keys=frozenset({"AuthenticationFailed"}),
        denied=frozenset({"AuthorizationFailure", "AuthorizationPermissionMismatch"}),
        transient=frozenset({"InternalError", "OperationTimedOut", "ServerBusy"}),
        already_there=frozenset({"BlobAlreadyExists"}),
        past_the_end=frozenset({"InvalidRange"}),
        no_credential=frozenset({"CredentialUnavailableError"}),
        # DefaultAzureCredential has looked everywhere.
        no_credential_texts=frozenset({"failed to retrieve a token"}),
        how_to_log_in="set AZURE_STORAGE_CONNECTION_STRING, log in with 'az login', or make a credential: "
        "periflow-ray credential create NAME --type azure-blob",
        no_connection=frozenset({"ClientConnectorError", "ClientConnectorDNSError"}),
    )

    def options(self, opening: Opening) -> dict[str, Any]:
        values = opening.credential_values
        if values is not None:
            # adlfs lets the environment's connection string win over other options, so the credential becomes one.
            return {"connection_string": values.get("connection_string") or _build_connection_string(values)}
        names = {
            "connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
            "account_name": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
            "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
            "sas_token": ("AZURE_STORAGE_SAS_TOKEN",),
            "client_id": ("AZURE_STORAGE_CLIENT_ID",),
            "client_secret": ("AZURE_STORAGE_CLIENT_SECRET",),
            "tenant_id": ("AZURE_STORAGE_TENANT_ID",),
        }
        found = {option: next(filter(None, map(opening.variables.get, given)), None) for option, given in names.items()}
        return {option: value for option, value in found.items() if value}

    def prepare(self, fs: Any, opening: Opening) -> None:
        _limit_client(fs, opening.timeout_s)
        _keep_question_marks(fs)

    def describe_misfit(self, err: Exception) -> str:
        if isinstance(err, KeyError):
            return super().describe_misfit(err)
        return (
            "no usable account is known; set AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_NAME, "
            "or name a credential"
        )

    def copy(self, storage: OpenStorage, key: str, source: str, target: str) -> None:
        operations, fs = storage.operations, storage.fs
        operations.run(key, lambda: operations.wait_for(fs, lambda: _copy_blob(fs, source, target)))

    def open_part_writer(
        self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> PartWriter:
        return _AzurePartWriter(storage, key, path, num_bytes=num_bytes, part_bytes=part_bytes)


class _AzurePartWriter:
    """Blocks and their list; see ``PartWriter``. The server forgets blocks that no list names within a week."""

    def __init__(self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int) -> None:
        self.part_bytes = max(part_bytes, -(-num_bytes // _MAX_BLOCKS))
        self._storage = storage
        self._key = key
        self._path = path
        # Blocks of another upload to the same key must not be taken for this one's.
        self._upload_id = uuid.uuid4().hex
        self._num_parts = 0

    def begin(self) -> None:
        """Nothing: blocks may come at once."""

    def put_part(self, index: int, content: bytes) -> None:
        self._num_parts = max(self._num_parts, index + 1)
        self._request(lambda blob: blob.stage_block(self._block_id(index), content, len(content)), len(content))

    def complete(self) -> None:
        block_ids = [self._block_id(index) for index in range(self._num_parts)]
        self._request(lambda blob: blob.commit_block_list(block_ids, metadata=_FILE_METADATA))

    def abort(self) -> None:
        """Nothing: there is no request to forget blocks."""

    def _block_id(self, index: int) -> str:
        return base64.b64encode(f"{self._upload_id}-{index:05d}".encode()).decode()

    def _request(self, operation: Callable[[Any], Awaitable[Any]], num_bytes: int = 0) -> None:
        operations, fs = self._storage.operations, self._storage.fs

        async def request() -> None:
            async with _blob_client(fs, self._path) as blob:
                await operation(blob)

        operations.run(self._key, lambda: operations.wait_for(fs, request, timeout_s=time_limit(num_bytes)))


async def _copy_blob(fs: Any, source: str, target: str) -> None:
    """Copy a blob inside the server, and wait until it is there.

    Raises:
        FileNotFoundError: there is no source.
    """
    await fs._cp_file(source, target)
    async with _blob_client(fs, target) as blob:
        while (status := (await blob.get_blob_properties()).copy.status) == "pending":
            await asyncio.sleep(_COPY_POLL_S)
    if status not in (None, "success"):
        raise OSError(f"the server gave the copy up ({status})")


def _blob_client(fs: Any, path: str) -> Any:
    container, name, _ = fs.split_path(path)
    return fs.service_client.get_blob_client(container, name)


def _build_connection_string(values: Mapping[str, str]) -> str:
    account = values["account_name"]
    if values.get("account_key"):
        key = values["account_key"]
        return f"DefaultEndpointsProtocol=https;AccountName={account};AccountKey={key};EndpointSuffix=core.windows.net"
    sas_token = values["sas_token"].lstrip("?")
    return f"BlobEndpoint=https://{account}.blob.core.windows.net;SharedAccessSignature={sas_token}"


def _limit_client(fs: Any, timeout_s: float) -> None:
    """Replace adlfs's client, whose own retries would hold an unreachable server's error back for minutes."""
    # Without a handler Python prints pages of warnings when no credential is found; the error says it, too.
    logging.getLogger("azure").addHandler(logging.NullHandler())
    client = fs.service_client
    fs.service_client = type(client)(
        client.url,
        credential=client.credential,
        retry_total=0,
        connection_timeout=connect_timeout(timeout_s),
        read_timeout=timeout_s,
    )


def _keep_question_marks(fs: Any) -> None:
    """Let adlfs take paths as they are: it would parse them as URIs, and store a file 'why?' as 'why'."""
    strip_protocol = fs._strip_protocol

    def strip(path: Any) -> Any:
        is_plain = isinstance(path, str) and "://" not in path
        return path.lstrip("/") if is_plain else strip_protocol(path)

    fs._strip_protocol = strip
