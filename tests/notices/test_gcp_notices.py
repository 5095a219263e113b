"""The value ``instance/preempted``, read from a service on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.metadata_servers import FakeGcp, serve_metadata

from periflow_ray.runtime.notices.gcp import GcpSource
from periflow_ray.runtime.notices.notice import MetadataError, Notice


@pytest.fixture
def gcp() -> Iterator[FakeGcp]:
    with serve_metadata(FakeGcp()) as service:
        yield service


@pytest.fixture
def source(gcp: FakeGcp) -> GcpSource:
    return GcpSource(gcp.endpoint, unix_s=lambda: 1000.0)


def test_preempted_means_thirty_seconds(gcp: FakeGcp, source: GcpSource):
    assert source.poll() is None
    gcp.is_preempted = True
    assert source.poll() == Notice(
        kind="preemption",
        deadline_unix_s=1030.0,
        notice_id="preempted",
        text="Google Cloud takes this spot VM back within 30 s",
    )
    assert source.poll() is None
    assert gcp.requests == ["GET /computeMetadata/v1/instance/preempted"] * 3
    assert gcp.num_connections == 1


def test_an_answer_of_something_else_is_an_error(gcp: FakeGcp, source: GcpSource):
    gcp.failure = "nonsense"
    with pytest.raises(MetadataError, match="not Google Cloud's answer"):
        source.poll()
    assert not source.is_present()
