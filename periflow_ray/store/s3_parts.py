"""S3: multipart uploads, and deleting many keys in one request."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

from periflow_ray.errors import StorageError
from periflow_ray.store.failures import is_code
from periflow_ray.store.filesystem import time_limit
from periflow_ray.store.operations import Operations

# Limits of the S3 API: 10,000 parts of at least 5 MiB (the last may be smaller), 1,000 keys in one deletion.
_MIN_PART_BYTES = 5 << 20
_MAX_PARTS = 10_000
_MAX_KEYS = 1_000

_NUM_ABORT_TRIES = 2


class S3PartWriter:
    """A multipart upload; see ``PartWriter``."""

    def __init__(
        self, operations: Operations, fs: Any, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> None:
        self.part_bytes = max(part_bytes, _MIN_PART_BYTES, -(-num_bytes // _MAX_PARTS))
        self._operations = operations
        self._fs = fs
        self._key = key
        bucket, name, _ = fs.split_path(path)
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
            if not is_code(err, "NoSuchUpload") or not self._is_completed():
                raise
        self._upload_id = None

    def abort(self) -> None:
        if self._upload_id is None:
            return
        # The transfer's own operations may have been stopped. What cannot be aborted stays invisible; a lifecycle rule
        # of the bucket removes it.
        operations = dataclasses.replace(self._operations, stop=threading.Event(), num_tries=_NUM_ABORT_TRIES)
        with contextlib.suppress(StorageError, FileNotFoundError):
            operations.run(
                self._key,
                lambda: _call(operations, self._fs, "abort_multipart_upload", UploadId=self._upload_id, **self._place),
            )

    def _is_completed(self) -> bool:
        found = self._request("head_object", **self._place)["ETag"].strip('"')
        # S3's own name for the whole: the MD5 of the parts' MD5s. Where a server computes it otherwise, the
        # completion counts as failed.
        digests = b"".join(bytes.fromhex(self._etags[index].strip('"')) for index in sorted(self._etags))
        return bool(found == f"{hashlib.md5(digests).hexdigest()}-{len(self._etags)}")

    def _request(self, method: str, *, num_bytes: int = 0, **parameters: Any) -> Any:
        try:
            return self._operations.run(
                self._key, lambda: _call(self._operations, self._fs, method, num_bytes=num_bytes, **parameters)
            )
        except FileNotFoundError as err:
            raise self._operations.failed(self._key, err) from err


def delete_keys(operations: Operations, fs: Any, prefix: str, paths: Sequence[str]) -> None:
    """Delete keys by their paths; ``prefix`` names them in messages.

    Raises:
        StorageError: a key could not be deleted.
    """
    for start in range(0, len(paths), _MAX_KEYS):
        _delete_batch(operations, fs, prefix, paths[start : start + _MAX_KEYS])


def _delete_batch(operations: Operations, fs: Any, prefix: str, paths: Sequence[str]) -> None:
    places = [fs.split_path(path) for path in paths]
    objects = {"Objects": [{"Key": name} for _, name, _ in places], "Quiet": True}
    answer = operations.run(
        prefix, lambda: _call(operations, fs, "delete_objects", Bucket=places[0][0], Delete=objects)
    )
    for error in answer.get("Errors", []):
        raise StorageError(
            f"'{prefix}' in storage root '{operations.uri}' cannot be deleted: {error['Code']} for '{error['Key']}'"
        )


def _call(operations: Operations, fs: Any, method: str, *, num_bytes: int = 0, **parameters: Any) -> Any:
    return operations.call(fs, "call_s3", method, timeout_s=time_limit(num_bytes), **parameters)
