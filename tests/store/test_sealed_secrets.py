from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from periflow_ray.errors import StorageError
from periflow_ray.jobs.sealed_secrets import seal, unseal

SECRETS = {"WANDB_API_KEY": "k3y-0f-ada", "EMPTY": "", "UMLAUT": "gehäuse"}


def test_secrets_open_with_their_key(root):
    assert unseal(root, 1, seal(root, 1, SECRETS)) == SECRETS


def test_neither_secret_nor_key_is_readable_in_the_storage_root(local_root):
    key = seal(local_root, 1, SECRETS)
    stored = b"".join(path.read_bytes() for path in Path(local_root.base_path).rglob("*") if path.is_file())
    assert len(stored) > 0
    for secret in (b"k3y-0f-ada", b"WANDB_API_KEY", "gehäuse".encode(), key.encode()):
        assert secret not in stored
        assert base64.b64encode(secret).rstrip(b"=") not in stored
        assert secret.hex().encode() not in stored


@pytest.mark.parametrize(
    "key", [Fernet.generate_key().decode(), "not a key", ""], ids=["another job's", "no key", "empty"]
)
def test_another_key_does_not_open_them(root, key):
    seal(root, 1, SECRETS)
    with pytest.raises(StorageError) as caught:
        unseal(root, 1, key)
    assert str(caught.value) == "the secrets of job 1 cannot be opened with the key in PERIFLOW_SECRETS_KEY"


def test_every_job_has_a_key_of_its_own(root):
    keys = [seal(root, job_id, SECRETS) for job_id in (1, 2)]
    with pytest.raises(StorageError):
        unseal(root, 2, keys[0])
    assert unseal(root, 2, keys[1]) == SECRETS
