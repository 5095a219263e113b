"""Real storage servers on loopback: two S3 implementations and Azure Blob, each in a ``with`` statement.

    with serve_moto(tmp_path) as server:
        os.environ.update(server.environment)
        StorageRoot(server.make_uri("some/prefix"))

Needs no pytest, so that ``scripts/bench`` uses it as well. A server keeps its data and its output (``<name>.log``) in
the directory that it is given.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

START_DEADLINE_S = 60.0
EXIT_DEADLINE_S = 5.0
CONTAINER = "periflow"
AZURITE = Path(sys.prefix) / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
AZURITE_MISSING = "Azurite is not installed: apt-get install nodejs npm && scripts/setup"

_ACCESS_KEY, _SECRET_KEY = "tests", "tests-secret"
_ACCOUNT, _ACCOUNT_KEY = "tests", base64.b64encode(b"only the tests' storage account").decode()
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class StorageServer:
    """A running server with one empty bucket or container.

    ``environment`` is what the cloud's usual chain of credentials reads.
    """

    name: str
    scheme: str
    port: int
    environment: dict[str, str]
    pid: int

    def make_uri(self, prefix: str, container: str = CONTAINER) -> str:
        """The URI of a prefix in a bucket or container, by default in the one that exists."""
        return f"{self.scheme}://{container}/{prefix}"

    def reached_through(self, port: int) -> dict[str, str]:
        """The environment with another port of this machine in place of the server's, for example a proxy's."""
        return {
            name: value.replace(f"//127.0.0.1:{self.port}", f"//127.0.0.1:{port}")
            for name, value in self.environment.items()
        }


@contextlib.contextmanager
def serve_moto(directory: Path) -> Iterator[StorageServer]:
    """S3 by moto: keeps everything in memory and accepts every key."""
    port = find_free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with run_server("moto", command, directory, port) as pid:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_DEADLINE_S)
        connection.request("PUT", f"/{CONTAINER}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()
        yield StorageServer("moto", "s3", port, make_s3_environment(port), pid)


@contextlib.contextmanager
def serve_rclone(directory: Path) -> Iterator[StorageServer]:
    """S3 by rclone: keys are files of a directory, and only one pair of keys is accepted."""
    data_dir = directory / "rclone"
    (data_dir / CONTAINER).mkdir(parents=True)
    port = find_free_port()
    rclone = str(Path(sys.executable).with_name("rclone"))
    command = [rclone, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{_ACCESS_KEY},{_SECRET_KEY}", str(data_dir)]
    with run_server("rclone", command, directory, port) as pid:
        yield StorageServer("rclone", "s3", port, make_s3_environment(port), pid)


@contextlib.contextmanager
def serve_azurite(directory: Path) -> Iterator[StorageServer]:
    """Azure Blob by Azurite; ask ``find_azurite`` first whether it is there."""
    from azure.storage.blob import BlobServiceClient

    node = find_azurite()
    assert node is not None, AZURITE_MISSING
    data_dir = directory / "azurite"
    data_dir.mkdir(parents=True)
    port = find_free_port()
    command = [node, str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(data_dir)]
    # The SDK speaks versions of the protocol that are newer than this Azurite.
    command += ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with run_server("azurite", command, directory, port, AZURITE_ACCOUNTS=f"{_ACCOUNT}:{_ACCOUNT_KEY}") as pid:
        environment = make_azure_environment(port)
        with BlobServiceClient.from_connection_string(environment["AZURE_STORAGE_CONNECTION_STRING"]) as service:
            service.create_container(CONTAINER)
        yield StorageServer("azurite", "abfs", port, environment, pid)


def find_azurite() -> str | None:
    """The ``node`` that can run Azurite; None when one of both is missing."""
    return shutil.which("node") if AZURITE.is_file() else None


def make_s3_environment(port: int, secret_key: str = _SECRET_KEY) -> dict[str, str]:
    """What an S3 client reads to find the server at a port of this machine, and nothing of the user's own."""
    return {
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def make_azure_environment(port: int, account_key: str = _ACCOUNT_KEY) -> dict[str, str]:
    """What an Azure Blob client reads to find the server at a port of this machine."""
    connection = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": _ACCOUNT,
        "AccountKey": account_key,
        "BlobEndpoint": f"http://127.0.0.1:{port}/{_ACCOUNT}",
    }
    return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in connection.items())}


def find_free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def run_server(name: str, command: Sequence[str], directory: Path, port: int, **variables: str) -> Iterator[int]:
    """A server, from when it answers at a port until the block ends; gives its process id."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.log"
    # A home of its own: a server reads no configuration of the user's and leaves nothing there.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **variables}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait_for_answer(server, port, log)
        yield server.pid
    finally:
        server.terminate()
        try:
            server.wait(EXIT_DEADLINE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for_answer(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_DEADLINE_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            if server.poll() is not None or time.monotonic() > deadline_s:
                state = "has ended" if server.poll() is not None else f"does not answer within {START_DEADLINE_S} s"
                raise RuntimeError(
                    f"the storage server '{log.stem}' {state}:\n{log.read_text(errors='replace')}"
                ) from None
            time.sleep(0.02)
        finally:
            connection.close()


def _die_with_parent() -> None:
    # Else a killed test run would leave its servers behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
