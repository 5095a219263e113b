"""Which cluster a function job joins, and what is said of one that lets nobody in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from periflow_ray.runtime.ray_train.train_run import is_on_this_machine

JOIN = "from periflow_ray.runtime.ray_train.train_run import ensure_ray; ensure_ray()"


class Refusal(grpc.GenericRpcHandler):
    """Answers every call as a cluster does whose token was not shown."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def closed_cluster() -> Iterator[str]:
    """HOST:PORT of what asks for a token."""
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((Refusal(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_a_cluster_that_asks_for_a_token_that_nobody_has_is_told_at_once(closed_cluster: str, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    env |= {"RAY_ADDRESS": closed_cluster, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", JOIN], env=env, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == (
        f"periflow_ray.errors.ClusterError: the Ray cluster at {closed_cluster} ($RAY_ADDRESS) asks for a token. "
        "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that has it."
    )


def test_an_address_is_this_machine_s_own_or_not() -> None:
    assert is_on_this_machine("127.0.0.1")
    assert is_on_this_machine("localhost")
    assert is_on_this_machine("[::1]") or not Path("/proc/net/if_inet6").exists()
    # Reserved for documentation.
    assert not is_on_this_machine("192.0.2.1")
