"""How the key of a job's secrets comes to a driver on a cluster that shares no files with the submitter.

Not with the Ray job, whose variables Ray keeps in its records, its logs and its dashboard. The driver asks for it in
the storage root, with the public half of a key that it has just made and that nobody else ever has; the submitter
answers with the key sealed for that half. Whoever reads the storage root reads neither.

jobs/<job>/secrets-asked.json, secrets-given.json: they are deleted when the driver has the key
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from periflow_ray.errors import ClusterError, DocumentError, NotFoundError, StorageError
from periflow_ray.store.documents import read_document, write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

# A cluster that is busy needs a while to start a driver.
TIMEOUT_S = 180.0
_POLL_S = 0.2
# How often the submitter looks whether the driver still lives.
_NUM_POLLS_BETWEEN_CHECKS = 10

Document = TypeVar("Document")


@dataclass(frozen=True)
class AskedKey:
    """Half of a key, in hexadecimal, for which the driver wants the key of the secrets sealed."""

    public_key: str


@dataclass(frozen=True)
class GivenKey:
    """The key of the secrets, sealed for whoever asked with ``asked``; ``public_key`` is the submitter's half."""

    asked: str
    public_key: str
    sealed_key: str


def ask_for_key(
    root: StorageRoot,
    job_id: int,
    *,
    keep: Callable[[str], None] = lambda key: None,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """The key of the job's secrets from its submitter; called by the driver.

    Args:
        keep: takes the key before the submitter knows that it has arrived, and goes.
    Raises:
        StorageError: it did not come in time.
    """
    private_key = X25519PrivateKey.generate()
    asked = private_key.public_key().public_bytes_raw().hex()
    write_document(root, _asked_key(job_id), AskedKey(asked))
    deadline_s = time.monotonic() + timeout_s
    while (given := _read(root, _given_key(job_id), GivenKey)) is None or given.asked != asked:
        if time.monotonic() > deadline_s:
            raise StorageError(
                f"the secrets of job {job_id} did not come: its submitter has ended, or has another storage root. "
                f"Start it again: periflow-ray job resume {job_id}"
            )
        time.sleep(_POLL_S)
    try:
        key = _shared_fernet(private_key, given.public_key).decrypt(given.sealed_key.encode()).decode()
    except (InvalidToken, InvalidKey, ValueError) as err:
        raise StorageError(f"the secrets of job {job_id} cannot be opened: its submitter's answer is damaged") from err
    keep(key)
    root.delete(_given_key(job_id))
    root.delete(_asked_key(job_id))
    return key


def forget_asked(root: StorageRoot, job_id: int) -> None:
    """Before a driver starts: what an earlier one asked for is not to be answered."""
    root.delete(_asked_key(job_id))


def give_key(
    root: StorageRoot, job_id: int, key: str, *, has_ended: Callable[[], bool], timeout_s: float = TIMEOUT_S
) -> None:
    """Answer the job's driver, and wait until it has the key; called by the submitter.

    Args:
        has_ended: whether the driver has.
    Raises:
        ClusterError: it did not ask in time, or ended before it had the key.
    """
    answered = None
    deadline_s = time.monotonic() + timeout_s
    num_polls = 0
    while True:
        asked = _read(root, _asked_key(job_id), AskedKey)
        if asked is None and answered is not None:
            return
        if asked is not None and asked.public_key != answered:
            write_document(root, _given_key(job_id), _seal_for(asked.public_key, key))
            answered = asked.public_key
        num_polls += 1
        if num_polls % _NUM_POLLS_BETWEEN_CHECKS == 0 and has_ended():
            raise ClusterError(
                f"the driver of job {job_id} ended before it had the job's secrets. Its output says why: "
                f"periflow-ray job view {job_id}"
            )
        if time.monotonic() > deadline_s:
            raise ClusterError(
                f"the driver of job {job_id} did not fetch the job's secrets within {timeout_s:.0f} s: the cluster has "
                f"not started it, or it cannot reach storage root '{root.uri}'."
            )
        time.sleep(_POLL_S)


def _seal_for(asked: str, key: str) -> GivenKey:
    private_key = X25519PrivateKey.generate()
    sealed_key = _shared_fernet(private_key, asked).encrypt(key.encode()).decode()
    return GivenKey(asked, private_key.public_key().public_bytes_raw().hex(), sealed_key)


def _shared_fernet(private_key: X25519PrivateKey, public_key: str) -> Fernet:
    shared = private_key.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public_key)))
    derived = HKDF(SHA256(), length=32, salt=None, info=b"periflow-ray secrets of a job").derive(shared)
    return Fernet(base64.urlsafe_b64encode(derived))


def _read(root: StorageRoot, key: str, kind: type[Document]) -> Document | None:
    try:
        return read_document(root, key, kind)
    except (NotFoundError, DocumentError):
        return None


def _asked_key(job_id: int) -> str:
    return job_key(job_id, "secrets-asked.json")


def _given_key(job_id: int) -> str:
    return job_key(job_id, "secrets-given.json")
