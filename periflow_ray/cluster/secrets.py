"""A cluster's own secrets, on the machine that made it: the key of its nodes' SSH, and the token of its Ray."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.private_files import create_private, make_own_directory
from periflow_ray.user_dirs import data_dir

DIR_VARIABLE = "PERIFLOW_CLUSTERS_DIR"
# Azure takes no Ed25519 key for every image; RSA is taken everywhere.
_KEY_BITS = 3072


@dataclass(frozen=True)
class ClusterSecrets:
    """The directory with a cluster's key and token, which only this user reads."""

    directory: Path

    @property
    def key_path(self) -> Path:
        """The private key, as OpenSSH reads it."""
        return self.directory / "key"

    @property
    def public_key_path(self) -> Path:
        """The public key, one line."""
        return self.directory / "key.pub"

    @property
    def token_path(self) -> Path:
        """The token that Ray asks of everybody who talks to it."""
        return self.directory / "token"

    @property
    def known_hosts_path(self) -> Path:
        """The nodes' own keys, as they were seen first."""
        return self.directory / "known_hosts"

    @property
    def are_there(self) -> bool:
        """Whether this machine has them."""
        return self.key_path.is_file() and self.token_path.is_file()

    def make(self) -> None:
        """Make what is missing of them."""
        make_own_directory(self.directory)
        if not self.key_path.exists():
            private, public = _make_key()
            self.public_key_path.write_bytes(public)
            create_private(self.key_path, private, is_durable=True)
        if not self.token_path.exists():
            create_private(self.token_path, secrets.token_hex(32).encode(), is_durable=True)

    def read_public_key(self) -> str:
        """The public key, as a line of ``authorized_keys``."""
        return self.public_key_path.read_text(encoding="ascii").strip()

    def forget(self) -> None:
        """Delete them, and what else is in their directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def forget_hosts(self) -> None:
        """Take a new head at an address for another machine, and not for an impostor."""
        with contextlib.suppress(FileNotFoundError):
            self.known_hosts_path.unlink()


def find_secrets(storage_uri: str, name: str) -> ClusterSecrets:
    """Where this machine keeps the secrets of a cluster of a storage root, whether or not they are there."""
    default = data_dir() / "clusters"
    base = Path(os.environ.get(DIR_VARIABLE) or default)
    return ClusterSecrets(base / f"{name}-{hashlib.sha256(storage_uri.encode()).hexdigest()[:8]}")


def _make_key() -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b" periflow-ray\n"
