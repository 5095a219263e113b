"""Each single storage operation of a checkpoint fails, hangs or is cut once, at every position in turn.

Afterwards the checkpoint is committed and every byte comes back, or it is not visible; never anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from support.fault_proxy import FAULTS, Fault, FaultProxy, Lasting
from support.saving import Saver
from support.storage_servers import StorageServer

from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

FIRST, DISTURBED, NEXT = 1, 2, 3
# The smallest part that S3 allows; Azure has no such limit.
PART_BYTES = {"s3": 5 << 20, "abfs": 64 << 10}


@dataclass(frozen=True)
class Case:
    """A job with one committed checkpoint, which saves through the proxy; ``root`` is reached without it."""

    saver: Saver
    impatient_saver: Saver
    root: StorageRoot


@pytest.fixture
def make_case(
    proxied_server: StorageServer, proxy: FaultProxy, set_variables, monkeypatch, request
) -> Callable[[int], Case]:
    """Makes a case whose checkpoints have a file of so many parts."""
    monkeypatch.setattr("periflow_ray.store.operations._FIRST_PAUSE_S", 0.001)

    def make(num_parts: int) -> Case:
        part_bytes = PART_BYTES[proxied_server.scheme]
        model_bytes = 100 if num_parts == 1 else (num_parts - 1) * part_bytes + 1
        uri = proxied_server.make_uri(f"faults/{request.node.name}")
        set_variables(proxied_server.environment)
        undisturbed = Saver(StorageRoot(uri), job_id=1, model_bytes=model_bytes, part_bytes=part_bytes)
        assert undisturbed.save(FIRST) is None
        set_variables(proxied_server.reached_through(proxy.port))
        saver = dataclasses.replace(undisturbed, root=StorageRoot(uri))
        with impatience():
            return Case(saver, dataclasses.replace(undisturbed, root=StorageRoot(uri)), undisturbed.root)

    return make


@contextlib.contextmanager
def impatience() -> Iterator[None]:
    """Hardly any time for a server to answer; only where it is to run out, because a busy machine takes long too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERIFLOW_STORAGE_TIMEOUT_S", "0.3")
        yield


@pytest.mark.parametrize("fault", ["answer_503", "reset_after_forwarding", "hang", "cut"])
def test_whatever_operation_fails_once_the_checkpoint_is_whole_or_not_visible(make_case, proxy, fault: str):
    case = make_case(num_parts=1)
    for position, request in enumerate(count_requests(case, proxy), start=1):
        # What carries something is cut on its way there, what fetches something on its way back.
        kind = fault if fault != "cut" else "cut_request" if request.startswith("P") else "cut_response"
        check_save(case, proxy, kind, position)
    check_next_save(case, proxy)


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_part_of_a_large_file_fails_once_the_checkpoint_is_whole_or_not_visible(
    make_case, proxy, fault: Fault
):
    case = make_case(num_parts=2)
    requests = count_requests(case, proxy)
    positions = [position for position, request in enumerate(requests, start=1) if "model.pt" in request]
    assert len(positions) >= 3
    for position in positions:
        check_save(case, proxy, fault, position, "same_request" if fault == "answer_500" else "once")
    check_next_save(case, proxy)


@pytest.mark.parametrize(
    ("fault", "lasts"), [("answer_500", "same_request"), ("reset_before_forwarding", "all_requests")]
)
def test_whatever_no_try_helps_against_the_checkpoint_is_whole_or_not_visible(
    make_case, proxy, fault: Fault, lasts: Lasting
):
    case = make_case(num_parts=1)
    for position in range(1, len(count_requests(case, proxy)) + 1):
        check_save(case, proxy, fault, position, lasts)
    check_next_save(case, proxy)


def count_requests(case: Case, proxy: FaultProxy) -> list[str]:
    """What an undisturbed save asks for."""
    proxy.plan_none()
    assert case.saver.save(DISTURBED) is None
    requests = proxy.requests
    forget(case.root, DISTURBED)
    return requests


def check_save(case: Case, proxy: FaultProxy, fault: Fault, position: int, lasts: Lasting = "once") -> None:
    proxy.plan(fault, position, lasts)
    if fault == "hang":
        with impatience():
            reason = case.impatient_saver.save(DISTURBED)
    else:
        reason = case.saver.save(DISTURBED)
    place = f"{fault} at {position}: {proxy.requests[position - 1 :]}"
    assert proxy.has_struck, place
    visible = case.saver.list_visible_steps(case.root)
    assert visible in ([FIRST], [FIRST, DISTURBED]), place
    assert reason is not None or DISTURBED in visible, place
    assert DISTURBED not in visible or case.saver.comes_back(case.root, DISTURBED), place
    forget(case.root, DISTURBED)


def check_next_save(case: Case, proxy: FaultProxy) -> None:
    proxy.plan_none()
    assert case.saver.save(NEXT) is None
    assert case.saver.list_visible_steps(case.root) == [FIRST, NEXT]
    assert case.saver.comes_back(case.root, FIRST)
    assert case.saver.comes_back(case.root, NEXT)


def forget(root: StorageRoot, step: int) -> None:
    checkpoints.destroy(root, 1, f"step-{step:08d}")
