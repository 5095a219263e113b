"""An AWS account on loopback: moto in this process, with images and quotas, and calls that can be made to fail."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import requests
from werkzeug.serving import make_server

from support.cloud.aws_provider import Api
from support.storage_servers import make_s3_environment

_IMAGES_VARIABLE = "MOTO_EC2_LOAD_DEFAULT_AMIS"


@dataclass(frozen=True)
class AwsAccount:
    """``environment`` is what AWS's SDKs read; ``api`` says which calls there were and lets some fail."""

    port: int
    api: Api

    @property
    def environment(self) -> dict[str, str]:
        return make_s3_environment(self.port)

    def reset(self) -> None:
        """An account with nothing in it but the default network."""
        self.api.__init__()  # type: ignore[misc]
        requests.post(f"http://127.0.0.1:{self.port}/moto-api/reset", timeout=30).raise_for_status()


@contextlib.contextmanager
def serve_aws() -> Iterator[AwsAccount]:
    """Answers while it is open."""
    # All of Amazon's images take moto seconds to load, for each test; a machine runs of any name here.
    before = os.environ.get(_IMAGES_VARIABLE)
    os.environ[_IMAGES_VARIABLE] = "false"
    api = Api()
    server = make_server("127.0.0.1", 0, api, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield AwsAccount(server.server_port, api)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        if before is None:
            del os.environ[_IMAGES_VARIABLE]
        else:
            os.environ[_IMAGES_VARIABLE] = before
