"""Spot interruptions and rebalance recommendations, read from an IMDSv2 service on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.metadata_servers import FakeAws, serve_metadata

from periflow_ray.runtime.notices.aws import RENEWAL_MARGIN_S, TOKEN_LIFETIME_S, AwsSource
from periflow_ray.runtime.notices.notice import MetadataError, Notice

# 2026-09-18T08:22:00Z
DEADLINE_UNIX_S = 1789719720.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def aws() -> Iterator[FakeAws]:
    with serve_metadata(FakeAws()) as service:
        yield service


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(aws: FakeAws, clock: Clock) -> AwsSource:
    return AwsSource(aws.endpoint, monotonic_s=clock)


def test_an_interruption_is_a_notice_with_its_deadline(aws: FakeAws, source: AwsSource):
    assert source.poll() is None
    aws.interruption = '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'
    assert source.poll() == Notice(
        kind="preemption",
        deadline_unix_s=DEADLINE_UNIX_S,
        notice_id="terminate 2026-09-18T08:22:00Z",
        text="AWS takes this spot instance back at 2026-09-18T08:22:00Z (action: terminate)",
    )


def test_a_notice_is_returned_once(aws: FakeAws, source: AwsSource):
    aws.interruption = '{"action": "stop", "time": "2026-09-18T08:22:00Z"}'
    assert source.poll() is not None
    assert source.poll() is None
    aws.interruption = '{"action": "stop", "time": "2026-09-18T08:20:00Z"}'
    later = source.poll()
    assert later is not None
    assert later.deadline_unix_s == DEADLINE_UNIX_S - 120


@pytest.mark.parametrize("content", ['{"action": "hibernate"}', '{"action": "hibernate", "time": "soon"}'])
def test_an_interruption_without_a_readable_time_may_come_at_any_moment(aws: FakeAws, source: AwsSource, content: str):
    aws.interruption = content
    notice = source.poll()
    assert notice is not None
    assert (notice.kind, notice.deadline_unix_s) == ("preemption", None)
    assert notice.text == "AWS takes this spot instance back at any moment (action: hibernate)"


def test_a_rebalance_recommendation_is_a_warning(aws: FakeAws, source: AwsSource):
    aws.rebalance = '{"noticeTime": "2026-09-18T08:00:00Z"}'
    assert source.poll() == Notice(
        kind="warning",
        deadline_unix_s=None,
        notice_id="rebalance 2026-09-18T08:00:00Z",
        text="AWS sees a higher risk that this spot instance is taken back "
        "(rebalance recommendation of 2026-09-18T08:00:00Z)",
    )
    assert [source.poll() for _ in range(10)] == [None] * 10


def test_an_interruption_goes_before_a_recommendation(aws: FakeAws, source: AwsSource):
    aws.rebalance = '{"noticeTime": "2026-09-18T08:00:00Z"}'
    aws.interruption = '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'
    notice = source.poll()
    assert notice is not None
    assert notice.kind == "preemption"


def test_the_usual_poll_is_one_request_over_one_connection(aws: FakeAws, source: AwsSource):
    for _ in range(6):
        source.poll()
    interruption = "GET /latest/meta-data/spot/instance-action"
    rebalance = "GET /latest/meta-data/events/recommendations/rebalance"
    assert aws.requests == ["PUT /latest/api/token", interruption, rebalance, *[interruption] * 5, rebalance]
    assert aws.num_connections == 1


def test_the_token_is_renewed_before_it_ends(aws: FakeAws, source: AwsSource, clock: Clock):
    source.poll()
    clock.now_s += TOKEN_LIFETIME_S - RENEWAL_MARGIN_S - 1
    source.poll()
    assert aws.num_tokens == 1
    clock.now_s += 2
    source.poll()
    assert aws.num_tokens == 2


def test_a_refused_token_is_renewed_within_the_poll(aws: FakeAws, source: AwsSource):
    source.poll()
    aws.valid_tokens.clear()
    aws.interruption = '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'
    assert source.poll() is not None
    assert aws.num_tokens == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "/latest/meta-data/spot/instance-action: not JSON: '{'"),
        ("[1]", "/latest/meta-data/spot/instance-action: not a JSON object: '[1]'"),
        ('{"time": "x"}', "/latest/meta-data/spot/instance-action: no action in {'time': 'x'}"),
    ],
)
def test_nonsense_is_an_error_and_no_notice(aws: FakeAws, source: AwsSource, content: str, message: str):
    aws.interruption = content
    with pytest.raises(MetadataError) as caught:
        source.poll()
    assert str(caught.value) == message


def test_only_a_service_that_gives_tokens_is_aws(aws: FakeAws, source: AwsSource):
    assert source.is_present()
    aws.failure, aws.failure_status = "status", 404
    assert not source.is_present()


def test_acknowledging_sends_nothing(aws: FakeAws, source: AwsSource):
    aws.interruption = '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'
    notice = source.poll()
    assert notice is not None
    num_requests = len(aws.requests)
    source.acknowledge(notice)
    assert len(aws.requests) == num_requests
