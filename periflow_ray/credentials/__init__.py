"""Keys under names, and how they reach the machines that need them."""

from __future__ import annotations

from periflow_ray.credentials.stored import (
    CREDENTIALS_FILE_VARIABLE,
    Credential,
    create_credential,
    credentials_path,
    delete_credential,
    list_credentials,
    read_credential,
)
from periflow_ray.credentials.unfit import describe_unfit

__all__ = [
    "CREDENTIALS_FILE_VARIABLE",
    "Credential",
    "create_credential",
    "credentials_path",
    "delete_credential",
    "describe_unfit",
    "list_credentials",
    "read_credential",
]
