"""S3 and servers that speak like it: multipart uploads, and deleting many keys in one request."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES
from periflow_ray.errors import StorageError
from periflow_ray.store.backends.backend import Opening, OpenStorage, PartWriter
from periflow_ray.store.backends.fsspec_backend import FsspecBackend
from periflow_ray.store.failures import Answer, Failures
from periflow_ray.store.time_limits import connect_timeout, time_limit

# Workers of a transfer and whoever else uses the same root wait for connections beyond this number.
_MAX_CONNECTIONS = 64
# Limits of the S3 API: 10,000 parts of at least 5 MiB (the last may be smaller), 1,000 keys in one deletion.
_MIN_PART_BYTES = 5 << 20
_MAX_PARTS = 10_000
_MAX_KEYS = 1_000

_NUM_ABORT_TRIES = 2


def _read_answer(cause: BaseException) -> Answer | None:
    """The answer in an exception of botocore."""
    response: Any = getattr(cause, "response", None)
    if not isinstance(response, dict) or "Error" not in response:
        return None
    error = response["Error"]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return Answer(str(error.get("Code")), status, str(error.get("Message", "")))


class S3Backend(FsspecBackend):
    """Buckets by s3fs; see ``Backend``."""

    schemes = ("s3", "s3a")
    clouds = ("aws", "s3")
    extra = "aws"
    credential_type = CREDENTIAL_TYPES["s3"]
    public_values = frozenset({"region", "endpoint_url"})
    failures = Failures(
        _read_answer,
        no_container=frozenset({"NoSuchBucket"}),
        wrong_keys=frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}),
        denied=frozenset({"403", "AccessDenied"}),
        transient=frozenset(
            {
                "BadDigest",
                "ConditionalRequestConflict",
                "IncompleteBody",
                "InternalError",
                "InternalServerError",
                "OperationAborted",
                "RequestTimeout",
                "ServiceUnavailable",
                "SlowDown",
                "Throttling",
                "XAmzContentSHA256Mismatch",
            }
        ),
        already_there=frozenset({"PreconditionFailed"}),
        past_the_end=frozenset({"InvalidRange"}),
        no_credential=frozenset({"NoCredentialsError", "PartialCredentialsError"}),
        how_to_log_in="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, log in with 'aws configure', or make a "
        "credential: periflow-ray credential create NAME --type s3",
        no_connection=frozenset({"EndpointConnectionError", "ClientConnectorError", "ClientConnectorDNSError"}),
        bad_settings=frozenset(
            {"InvalidConfigError", "ProfileNotFound", "ParamValidationError", "InvalidEndpointError"}
        ),
    )

    def options(self, opening: Opening) -> dict[str, Any]:
        config = {
            "connect_timeout": connect_timeout(opening.timeout_s),
            "read_timeout": opening.timeout_s,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": _MAX_CONNECTIONS,
            # Building botocore's own text takes a tenth of the time of a small request.
            "user_agent": "periflow-ray",
            # TLS, or the signature over plain HTTP, guards the bytes already; many S3 servers know no other checksums.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        values = opening.credential_values
        if values is None:
            values = _values_of(opening.variables)
        region = values.get("region")
        found = {
            "key": values.get("access_key_id"),
            "secret": values.get("secret_access_key"),
            "token": values.get("session_token"),
            "endpoint_url": values.get("endpoint_url") or _endpoint_of(opening.variables),
            "client_kwargs": {"region_name": region} if region else None,
        }
        return {"config_kwargs": config, **{name: value for name, value in found.items() if value}}

    def prepare(self, fs: Any, opening: Opening) -> None:
        fs.retries = 1  # s3fs would try again by itself, below the retries of this project.

    def delete_many(self, storage: OpenStorage, key: str, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _MAX_KEYS):
            _delete_batch(storage, key, paths[start : start + _MAX_KEYS])

    def open_part_writer(
        self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> PartWriter:
        return _S3PartWriter(storage, key, path, num_bytes=num_bytes, part_bytes=part_bytes)


class _S3PartWriter:
    """A multipart upload; see ``PartWriter``."""

    def __init__(self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int) -> None:
        self.part_bytes = max(part_bytes, _MIN_PART_BYTES, -(-num_bytes // _MAX_PARTS))
        self._storage = storage
        self._key = key
        bucket, name, _ = storage.fs.split_path(path)
        self._place = {"Bucket": bucket, "Key": name}
        self._upload_id: str | None = None
        self._etags: dict[int, str] = {}

    def begin(self) -> None:
        self._upload_id = self._request("create_multipart_upload", **self._place)["UploadId"]

    def put_part(self, index: int, content: bytes) -> None:
        answer = self._request(
            "upload_part",
            num_bytes=len(content),
            PartNumber=index + 1,
            UploadId=self._upload_id,
            Body=content,
            **self._place,
        )
        self._etags[index] = answer["ETag"]

    def complete(self) -> None:
        parts = [{"PartNumber": index + 1, "ETag": self._etags[index]} for index in sorted(self._etags)]
        try:
            self._request(
                "complete_multipart_upload",
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
                **self._place,
            )
        except StorageError as err:
            # A completion whose answer was lost has ended the upload, and the next try does not find it.
            if not S3Backend.failures.is_code(err, "NoSuchUpload") or not self._is_completed():
                raise
        self._upload_id = None

    def abort(self) -> None:
        if self._upload_id is None:
            return
        # The transfer's own operations may have been stopped. An upload that cannot be aborted stays invisible; a
        # lifecycle rule of the bucket removes it.
        operations = dataclasses.replace(self._storage.operations, stop=threading.Event(), num_tries=_NUM_ABORT_TRIES)
        storage = dataclasses.replace(self._storage, operations=operations)
        with contextlib.suppress(StorageError, FileNotFoundError):
            _run(storage, self._key, "abort_multipart_upload", UploadId=self._upload_id, **self._place)

    def _is_completed(self) -> bool:
        found = self._request("head_object", **self._place)["ETag"].strip('"')
        # S3's own name for the whole: the MD5 of the parts' MD5s. Where a server computes it otherwise, the
        # completion counts as failed.
        digests = b"".join(bytes.fromhex(self._etags[index].strip('"')) for index in sorted(self._etags))
        return bool(found == f"{hashlib.md5(digests).hexdigest()}-{len(self._etags)}")

    def _request(self, method: str, *, num_bytes: int = 0, **parameters: Any) -> Any:
        try:
            return _run(self._storage, self._key, method, num_bytes=num_bytes, **parameters)
        except FileNotFoundError as err:
            raise self._storage.operations.failed(self._key, err) from err


def _delete_batch(storage: OpenStorage, prefix: str, paths: Sequence[str]) -> None:
    places = [storage.fs.split_path(path) for path in paths]
    objects = {"Objects": [{"Key": name} for _, name, _ in places], "Quiet": True}
    answer = _run(storage, prefix, "delete_objects", Bucket=places[0][0], Delete=objects)
    for error in answer.get("Errors", []):
        raise StorageError(
            f"'{prefix}' in storage root '{storage.operations.uri}' cannot be deleted: "
            f"{error['Code']} for '{error['Key']}'"
        )


def _run(storage: OpenStorage, key: str, method: str, *, num_bytes: int = 0, **parameters: Any) -> Any:
    """A request of the S3 API, tried several times; ``num_bytes`` move with it."""
    return storage.run(key, "call_s3", method, timeout_s=time_limit(num_bytes), **parameters)


def _values_of(variables: Mapping[str, str]) -> dict[str, str]:
    names = {
        "access_key_id": "AWS_ACCESS_KEY_ID",
        "secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
    }
    # Without the keys botocore goes through its chain: profiles, web identity, the machine's role.
    values = {name: variables.get(variable, "") for name, variable in names.items()}
    if not (values["access_key_id"] and values["secret_access_key"]):
        values = {}
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    return {**values, "region": region} if region else values


def _endpoint_of(variables: Mapping[str, str]) -> str | None:
    if variables.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
