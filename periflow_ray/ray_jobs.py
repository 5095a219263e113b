"""Ray's Jobs API over HTTP; without importing Ray, which takes longer than the requests themselves."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests

from periflow_ray.errors import ClusterError, UsageError

RayJobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
ENDED_RAY_STATUSES: frozenset[RayJobStatus] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
# How long a cluster that is up may take to be ready for jobs.
AGENT_TIMEOUT_S = 60.0
RETRY_INTERVAL_S = 0.5
_NO_AGENT = "No available agent to submit job"
REQUEST_TIMEOUT_S = 30.0
# A shell's exit code is so much more than the number of the signal that killed its command.
_KILLED_EXIT_CODE = 128


@dataclass(frozen=True)
class RayJob:
    """What Ray knows of a job.

    Args:
        message: Ray's own sentence on how it ended.
        exit_code: of the process that Ray started; None if Ray did not see it end.
    """

    status: RayJobStatus
    message: str | None
    exit_code: int | None = None

    @property
    def ended_by_itself(self) -> bool:
        """Whether it came to its end, and so what it waits for; one that was killed leaves its driver."""
        return self.exit_code is not None and 0 <= self.exit_code < _KILLED_EXIT_CODE


class RayJobs:
    """The Jobs API of one cluster.

    Args:
        address: ``http://host:8265``, as ``ray job submit --address`` takes it.
        token: the cluster's authentication token; None if it has none.
        reference: what finds the cluster again where its address does not; the address without it.
    Raises:
        UsageError: the address is not an HTTP URL.
    """

    def __init__(self, address: str, token: str | None = None, reference: str | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"cluster address '{address}' is not the address of Ray's job server. Use http://HOST:8265, the "
                "address of the cluster's dashboard (for a remote cluster: ray dashboard CLUSTER.yaml, then "
                "http://127.0.0.1:8265)."
            )
        self.address = address.rstrip("/")
        self.reference = reference or self.address
        self._session = requests.Session()
        # Proxy settings and netrc of the user must not reach a cluster's address.
        self._session.trust_env = False
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def check(self) -> None:
        """Ask for the version.

        Raises:
            ClusterError: nothing answers, or the token is refused.
        """
        self._request("GET", "/api/version")

    def submit(self, entrypoint: str, submission_id: str) -> None:
        """Start a driver on the cluster.

        Args:
            entrypoint: a shell command, which everybody sees who sees the cluster.
            submission_id: the Ray job's id, chosen by us.
        Raises:
            ClusterError: the cluster refused.
        """
        body = {"entrypoint": entrypoint, "submission_id": submission_id}
        deadline_s = time.monotonic() + AGENT_TIMEOUT_S
        while True:
            try:
                self._request("POST", "/api/jobs/", body)
                return
            except ClusterError as err:
                # On a busy machine a cluster answers before the process that starts jobs is there.
                if _NO_AGENT not in str(err) or time.monotonic() > deadline_s:
                    raise
            time.sleep(RETRY_INTERVAL_S)

    def read(self, submission_id: str) -> RayJob | None:
        """A job as Ray knows it; None if the cluster does not know it."""
        response = self._request("GET", f"/api/jobs/{submission_id}", allow_missing=True)
        if response is None:
            return None
        return RayJob(response["status"], response.get("message"), response.get("driver_exit_code"))

    def read_driver_output(self, submission_id: str) -> str:
        """What the driver printed; empty if the cluster does not know the job."""
        response = self._request("GET", f"/api/jobs/{submission_id}/logs", allow_missing=True)
        return "" if response is None else str(response.get("logs") or "")

    def stop(self, submission_id: str) -> None:
        """Ask Ray to end the driver; nothing happens if it has ended."""
        self._request("POST", f"/api/jobs/{submission_id}/stop", allow_missing=True)

    def has_running_jobs(self) -> bool:
        """Whether any job of the cluster has not ended."""
        return self.count_running_jobs() > 0

    def count_running_jobs(self) -> int:
        """How many jobs of the cluster have not ended."""
        return len(self._list_running_jobs())

    def stop_all(self) -> None:
        """Ask every job that was submitted to end; function jobs end with the cluster."""
        for job in self._list_running_jobs():
            if job.get("submission_id"):
                self.stop(job["submission_id"])

    def _list_running_jobs(self) -> list[dict[str, Any]]:
        return [job for job in self._request("GET", "/api/jobs/") if job["status"] not in ENDED_RAY_STATUSES]

    def _request(self, method: str, path: str, body: Any = None, *, allow_missing: bool = False) -> Any:
        try:
            response = self._session.request(method, self.address + path, json=body, timeout=REQUEST_TIMEOUT_S)
        except requests.RequestException as err:
            raise ClusterError(
                f"no Ray cluster answers at {self.address} ({type(err).__name__}). Is it up, and is its dashboard "
                "port reachable? Start one with 'ray up', or run on this machine with --local."
            ) from err
        if response.status_code in (401, 403):
            raise ClusterError(
                f"the Ray cluster at {self.address} refused the token ({response.status_code}). Set RAY_AUTH_TOKEN, "
                "or RAY_AUTH_TOKEN_PATH to the file with the cluster's token."
            )
        if response.status_code == 404 and allow_missing:
            return None
        if not response.ok:
            raise ClusterError(
                f"the Ray cluster at {self.address} refused {method} {path}: {response.status_code} "
                f"{response.text.strip()[:500]}"
            )
        try:
            return response.json()
        except requests.JSONDecodeError as err:
            raise ClusterError(f"what answers at {self.address} is not a Ray cluster's job server: {err}") from err


def connect(address: str, token_path: Path | None = None, reference: str | None = None) -> RayJobs:
    """The Jobs API at an address, with the token from ``token_path``, or from where Ray looks for it."""
    return RayJobs(address, _read_token(token_path), reference)


def _read_token(token_path: Path | None) -> str | None:
    if token_path is None:
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            return token.strip()
        token_path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return token_path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
