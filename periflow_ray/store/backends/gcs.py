"""Google Cloud Storage."""

from __future__ import annotations

import json
from typing import Any

from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES
from periflow_ray.store.backends.backend import Opening
from periflow_ray.store.backends.fsspec_backend import FsspecBackend
from periflow_ray.store.failures import Answer, Failures


def _read_answer(cause: BaseException) -> Answer | None:
    """The answer in an exception of gcsfs."""
    status: Any = getattr(cause, "code", None)
    return Answer(status=status) if type(cause).__name__ == "HttpError" and isinstance(status, int) else None


class GcsBackend(FsspecBackend):
    """Buckets by gcsfs; see ``Backend``."""

    schemes = ("gs", "gcs")
    clouds = ("gcp", "gcs")
    extra = "gcp"
    credential_type = CREDENTIAL_TYPES["gcs"]
    failures = Failures(_read_answer, no_connection=frozenset({"ClientConnectorError", "ClientConnectorDNSError"}))

    def options(self, opening: Opening) -> dict[str, Any]:
        options: dict[str, Any] = {"requests_timeout": opening.timeout_s}
        if opening.credential_values is not None:
            options["token"] = json.loads(opening.credential_values["service_account_json"])
        return options

    def describe_misfit(self, err: Exception) -> str:
        if isinstance(err, KeyError):
            return super().describe_misfit(err)
        return "the credential's service_account_json is not JSON"
