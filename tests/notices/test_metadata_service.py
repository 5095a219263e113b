"""What every cloud's source makes of a metadata service that fails, hangs, goes away and comes back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.metadata_servers import FakeAws, FakeAzure, FakeGcp, FakeMetadata, serve_metadata

from periflow_ray.errors import UsageError
from periflow_ray.runtime.notices.aws import AwsSource
from periflow_ray.runtime.notices.azure import AzureSource
from periflow_ray.runtime.notices.clouds import CLOUDS, find_source, make_source
from periflow_ray.runtime.notices.gcp import GcpSource
from periflow_ray.runtime.notices.metadata import MetadataClient
from periflow_ray.runtime.notices.notice import MetadataError, NoticeSource

SERVICES: dict[str, Callable[[], FakeMetadata]] = {"aws": FakeAws, "azure": FakeAzure, "gcp": FakeGcp}


def make_all_sources(endpoint: str) -> list[NoticeSource]:
    return [make_source(cloud, {"PERIFLOW_METADATA_ENDPOINT": endpoint}) for cloud in CLOUDS]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("failure", ["status", "cut", "nonsense"])
def test_a_failure_is_an_error_and_the_next_answer_counts(cloud: str, failure: str):
    with serve_metadata(SERVICES[cloud]()) as service:
        source = make_source(cloud, {"PERIFLOW_METADATA_ENDPOINT": service.endpoint})
        assert source.poll() is None
        service.failure = failure  # type: ignore[assignment]
        with pytest.raises(MetadataError):
            source.poll()
        service.failure = ""
        assert source.poll() is None


@pytest.mark.parametrize(
    ("service", "make"), [(FakeAws(), AwsSource), (FakeAzure(), AzureSource), (FakeGcp(), GcpSource)]
)
def test_a_hanging_service_is_left_after_the_timeout(service: FakeMetadata, make: Callable[..., NoticeSource]):
    with serve_metadata(service):
        source = make(service.endpoint, timeout_s=0.5)
        assert source.poll() is None
        service.failure = "hang"
        with pytest.raises(MetadataError, match="no answer"):
            source.poll()
        service.failure = ""
        assert source.poll() is None


@pytest.mark.parametrize(
    ("beginning", "drop", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b".", "timed out"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b".", "timed out"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 8000000000\r\n\r\n", b"x" * 10_000, "more than 64 KiB"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_000, "more than 64 KiB"),
    ],
    ids=["slow headers", "slow body", "huge body", "endless body"],
)
def test_an_answer_that_takes_too_long_or_is_too_large_is_none(beginning: bytes, drop: bytes, reason: str):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        client = MetadataClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)
        asking = threads.submit(client.request, "GET", "/")
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # It is hung up, as it should be.
            connection.sendall(beginning)
            while not asking.done():
                connection.sendall(drop)
                concurrent.futures.wait([asking], timeout=0.01)
        with pytest.raises(MetadataError, match=f"no answer \\({reason}\\)"):
            asking.result()


@pytest.mark.parametrize(("cloud", "path"), [("aws", "interruption"), ("azure", "document")])
def test_a_deep_document_is_an_error_like_others(cloud: str, path: str):
    with serve_metadata(SERVICES[cloud]()) as service:
        source = make_source(cloud, {"PERIFLOW_METADATA_ENDPOINT": service.endpoint})
        setattr(service, path, "[" * 60_000)
        with pytest.raises(MetadataError, match="not JSON"):
            source.poll()


def test_what_a_service_says_drives_no_terminal_and_forges_no_line():
    with serve_metadata(FakeAws()) as service:
        source = make_source("aws", {"PERIFLOW_METADATA_ENDPOINT": service.endpoint})
        service.interruption = json.dumps({"action": "stop\n\x1b[31m" + 1000 * "x", "time": "soon\r"})
        notice = source.poll()
    assert notice is not None
    assert notice.text.startswith("AWS takes this spot instance back at any moment (action: stop\\n\\x1b[31mxxx")
    assert notice.text.isprintable()
    assert len(notice.text) < 400


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_service_may_go_away_and_come_back(cloud: str):
    service = SERVICES[cloud]()
    with serve_metadata(service):
        source = make_source(cloud, {"PERIFLOW_METADATA_ENDPOINT": service.endpoint})
        assert source.poll() is None
    with pytest.raises(MetadataError, match=f"^{service.endpoint}/.*: no answer"):
        source.poll()
    with serve_metadata(service):
        assert source.poll() is None


def test_a_connection_that_the_service_closed_is_no_failure():
    service = FakeGcp()
    with serve_metadata(service):
        source = make_source("gcp", {"PERIFLOW_METADATA_ENDPOINT": service.endpoint})
        source.poll()
    with serve_metadata(service):
        assert source.poll() is None


@pytest.mark.parametrize(("cloud", "name"), [("aws", "AWS"), ("azure", "Azure"), ("gcp", "Google Cloud")])
def test_the_cloud_is_the_one_that_answers(cloud: str, name: str):
    with serve_metadata(SERVICES[cloud]()) as service:
        assert find_source(make_all_sources(service.endpoint)).cloud_name == name


def test_a_machine_outside_every_cloud():
    with serve_metadata(FakeGcp(failure="status", failure_status=404)) as service:
        sources = make_all_sources(service.endpoint)
        with pytest.raises(MetadataError) as caught:
            find_source(sources)
    assert str(caught.value) == "no metadata service answers as one of AWS, Azure, Google Cloud does"


def test_the_clouds_own_variables_name_the_endpoint():
    with serve_metadata(FakeAws()) as aws, serve_metadata(FakeGcp()) as gcp:
        host = gcp.endpoint.removeprefix("http://")
        assert make_source("aws", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{aws.endpoint}/"}).is_present()
        assert make_source("gcp", {"GCE_METADATA_HOST": host}).is_present()


@pytest.mark.parametrize(
    "endpoint", ["https://127.0.0.1", "127.0.0.1:80", "http://", "http://h:x", "http://h:99999", "http://h/path"]
)
def test_an_endpoint_that_is_no_plain_url(endpoint: str):
    with pytest.raises(UsageError) as caught:
        MetadataClient(endpoint)
    assert str(caught.value) == (
        f"metadata endpoint {endpoint!r}: must look like http://169.254.169.254 or http://HOST:PORT"
    )
