"""Scheduled Events, read from and acknowledged at a service on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.metadata_servers import FakeAzure, serve_metadata

from periflow_ray.runtime.notices.azure import AzureSource
from periflow_ray.runtime.notices.notice import MetadataError, Notice

NOT_BEFORE = "Fri, 18 Sep 2026 08:22:00 GMT"
DEADLINE_UNIX_S = 1789719720.0


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    with serve_metadata(FakeAzure()) as service:
        yield service


@pytest.fixture
def source(azure: FakeAzure) -> AzureSource:
    return AzureSource(azure.endpoint)


def test_a_preempt_event_is_a_notice_with_its_deadline(azure: FakeAzure, source: AzureSource):
    assert source.poll() is None
    azure.announce("Preempt", "event-1", not_before=NOT_BEFORE)
    assert source.poll() == Notice(
        kind="preemption",
        deadline_unix_s=DEADLINE_UNIX_S,
        notice_id="event-1",
        text="Azure takes this spot VM back not before Fri, 18 Sep 2026 08:22:00 GMT (event: Preempt)",
        is_acknowledgeable=True,
    )
    assert source.poll() is None


def test_a_started_event_may_end_the_machine_at_any_moment(azure: FakeAzure, source: AzureSource):
    azure.announce("Terminate", "event-1")
    notice = source.poll()
    assert notice is not None
    assert (notice.kind, notice.deadline_unix_s) == ("preemption", None)
    assert notice.text == "Azure deletes this VM at any moment (event: Terminate)"


@pytest.mark.parametrize("event_type", ["Freeze", "Reboot", "Redeploy"])
def test_maintenance_is_a_warning(azure: FakeAzure, source: AzureSource, event_type: str):
    azure.announce(event_type, "event-1", not_before=NOT_BEFORE)
    notice = source.poll()
    assert notice is not None
    assert (notice.kind, notice.deadline_unix_s, notice.is_acknowledgeable) == ("warning", DEADLINE_UNIX_S, False)


def test_an_event_for_another_machine_is_none_of_ours(azure: FakeAzure, source: AzureSource):
    azure.announce("Preempt", "event-1", not_before=NOT_BEFORE, resources=("worker_70", "worker_8"))
    assert source.poll() is None


def test_names_of_machines_have_no_case(azure: FakeAzure, source: AzureSource):
    azure.announce("Preempt", "event-1", not_before=NOT_BEFORE, resources=("WORKER_7",))
    assert source.poll() is not None


def test_preemption_goes_before_maintenance_and_nothing_is_forgotten(azure: FakeAzure, source: AzureSource):
    azure.announce("Freeze", "event-1", not_before=NOT_BEFORE)
    azure.announce("Preempt", "event-2", not_before=NOT_BEFORE)
    notices = [source.poll() for _ in range(3)]
    assert [notice and notice.notice_id for notice in notices] == ["event-2", "event-1", None]


def test_acknowledging_starts_the_event(azure: FakeAzure, source: AzureSource):
    azure.announce("Preempt", "event-1", not_before=NOT_BEFORE)
    notice = source.poll()
    assert notice is not None
    source.acknowledge(notice)
    assert azure.started == ["event-1"]


def test_an_event_for_several_machines_is_never_started_early(azure: FakeAzure, source: AzureSource):
    azure.announce("Preempt", "event-1", not_before=NOT_BEFORE, resources=("worker_7", "worker_8"))
    notice = source.poll()
    assert notice is not None
    assert not notice.is_acknowledgeable
    source.acknowledge(notice)
    assert azure.started == []


def test_a_refused_acknowledgement_is_an_error(azure: FakeAzure, source: AzureSource):
    azure.announce("Preempt", "event-1", not_before=NOT_BEFORE)
    notice = source.poll()
    assert notice is not None
    azure.events = []
    with pytest.raises(MetadataError, match="HTTP status 400"):
        source.acknowledge(notice)


def test_the_usual_poll_is_one_request_over_one_connection(azure: FakeAzure, source: AzureSource):
    for _ in range(3):
        source.poll()
    events = "GET /metadata/scheduledevents?api-version=2020-07-01"
    assert azure.requests == ["GET /metadata/instance/compute/name?api-version=2021-02-01&format=text", *[events] * 3]
    assert azure.num_connections == 1


@pytest.mark.parametrize("document", ["[]", "{}", '{"Events": 3}'])
def test_a_document_of_another_shape_is_an_error(azure: FakeAzure, source: AzureSource, document: str):
    azure.document = document
    with pytest.raises(MetadataError) as caught:
        source.poll()
    assert str(caught.value).endswith(f"no list of Events in {document!r}")


def test_an_event_that_names_no_machine_is_passed_over(azure: FakeAzure, source: AzureSource):
    azure.document = '{"Events": [{"EventType": "Preempt"}, 3]}'
    assert source.poll() is None


def test_only_a_service_that_knows_the_machines_name_is_azure(azure: FakeAzure, source: AzureSource):
    assert source.is_present()
    azure.failure, azure.failure_status = "status", 404
    assert not source.is_present()
