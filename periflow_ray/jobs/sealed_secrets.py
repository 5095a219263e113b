"""Secrets of a job: encrypted in the storage root, while the key is with the job's driver; one is no use alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cryptography.fernet import Fernet, InvalidToken

from periflow_ray.errors import StorageError
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

KEY_VARIABLE = "PERIFLOW_SECRETS_KEY"


def seal(root: StorageRoot, job_id: int, secrets: Mapping[str, str]) -> str:
    """Store secrets encrypted; returns the key that opens them."""
    key = Fernet.generate_key()
    root.write_private(_sealed_key(job_id), Fernet(key).encrypt(json.dumps(dict(secrets)).encode()))
    return key.decode()


def unseal(root: StorageRoot, job_id: int, key: str) -> dict[str, str]:
    """The secrets of a job.

    Raises:
        StorageError: the key does not fit.
    """
    try:
        secrets: dict[str, str] = json.loads(Fernet(key).decrypt(root.read_bytes(_sealed_key(job_id))))
    except (InvalidToken, ValueError) as err:  # ValueError: not a key at all.
        raise StorageError(f"the secrets of job {job_id} cannot be opened with the key in {KEY_VARIABLE}") from err
    return secrets


def _sealed_key(job_id: int) -> str:
    return job_key(job_id, "secrets.sealed")
