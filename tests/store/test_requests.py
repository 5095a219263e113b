from __future__ import annotations

import json
import time

import pytest

from periflow_ray.errors import StorageError
from periflow_ray.jobs.requests import (
    Drill,
    KillNodeDrill,
    KillRankDrill,
    NoticeDrill,
    StopRequest,
    UnknownRequest,
    clear_requests,
    post_request,
    take_requests,
    withdraw_request,
)
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


@pytest.mark.parametrize(
    ("request_", "stored"),
    [
        (StopRequest(60.0), {"kind": "stop", "timeout_s": 60.0}),
        (NoticeDrill(1, 30.0), {"kind": "drill", "what": "notice", "notice_s": 30.0, "node": 1}),
        (KillRankDrill(3), {"kind": "drill", "what": "kill_rank", "rank": 3}),
        (KillNodeDrill(1), {"kind": "drill", "what": "kill_node", "node": 1}),
    ],
)
def test_a_request_is_taken_once_with_all_it_says(root, request_: StopRequest | Drill, stored):
    before_unix_s = time.time()
    key = post_request(root, 3, request_)
    document = json.loads(root.read_bytes(key))
    assert before_unix_s <= document.pop("time_unix_s") <= time.time()
    assert document == {"format": 1, **stored}
    assert take_requests(root, 3) == [request_]
    assert not root.exists(key)
    assert take_requests(root, 3) == []


def test_requests_are_taken_in_the_order_of_their_posting(root):
    for moment_unix_ms, timeout_s in ((1_700_000_000_002, 2), (1_700_000_000_010, 3), (999_999_999_999, 1)):
        key = job_key(1, "requests", f"{moment_unix_ms:013}-x.json")
        root.write_json(key, {"kind": "stop", "time_unix_s": moment_unix_ms / 1000, "timeout_s": timeout_s})
    assert take_requests(root, 1) == [StopRequest(1.0), StopRequest(2.0), StopRequest(3.0)]


def test_requests_of_another_job_stay(root):
    post_request(root, 1, StopRequest(60.0))
    assert take_requests(root, 2) == []
    assert len(take_requests(root, 1)) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"stop"'])
def test_a_damaged_request_is_deleted_and_left_out(root, content):
    root.write_bytes(job_key(1, "requests", "0000000000001-x.json"), content)
    post_request(root, 1, StopRequest(0.0))
    assert take_requests(root, 1) == [StopRequest(0.0)]
    assert root.list_names(job_key(1, "requests")) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{}", "''"),
        (b'{"kind": "stop"}', "'stop' without 'timeout_s'"),
        (
            b'{"kind": "stop", "timeout_s": []}',
            "'stop' (float() argument must be a string or a real number, not 'list')",
        ),
        (b'{"kind": "dance", "time_unix_s": 1.0}', "'dance'"),
        (b'{"kind": "drill", "node": 1}', "'drill'"),
        (b'{"kind": "drill", "what": "kill_cluster", "node": 1}', "'drill kill_cluster'"),
        (b'{"kind": "drill", "what": "kill_node", "rank": 1}', "'drill kill_node' without 'node'"),
    ],
)
def test_a_request_that_is_not_known_is_never_taken_for_another(root, content, text):
    root.write_bytes(job_key(1, "requests", "0000000000001-x.json"), content)
    assert take_requests(root, 1) == [UnknownRequest(text)]
    assert root.list_names(job_key(1, "requests")) == []


def test_a_request_can_be_taken_back_until_the_driver_has_it(root):
    key = post_request(root, 1, KillNodeDrill(0))
    assert withdraw_request(root, key)
    assert take_requests(root, 1) == []
    key = post_request(root, 1, StopRequest(1.0))
    take_requests(root, 1)
    assert not withdraw_request(root, key)


def test_cleared_requests_are_gone(root):
    post_request(root, 1, StopRequest(1.0))
    clear_requests(root, 1)
    clear_requests(root, 1)
    assert take_requests(root, 1) == []


class _FailsFromSecondRead(StorageRoot):
    num_reads = 0

    def read_bytes(self, key: str, start: int | None = None) -> bytes:
        self.num_reads += 1
        if self.num_reads > 1:
            raise StorageError("the network is away")
        return super().read_bytes(key, start)


def test_what_was_taken_before_the_storage_failed_is_not_lost(tmp_path):
    root = _FailsFromSecondRead(str(tmp_path))
    for _ in range(2):
        post_request(root, 1, StopRequest(1.0))
    assert len(take_requests(root, 1)) == 1
    with pytest.raises(StorageError):
        take_requests(root, 1)
    assert len(take_requests(StorageRoot(str(tmp_path)), 1)) == 1
