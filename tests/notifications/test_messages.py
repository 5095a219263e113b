"""What people read when something happened to their job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from periflow_ray.jobs import JobRecord
from periflow_ray.runtime.notifications.message import (
    JobMessage,
    MessageKind,
    build_message,
    describe_message,
    message_document,
)


@pytest.fixture
def message(record: JobRecord) -> Callable[..., JobMessage]:
    def build(kind: MessageKind, **facts: Any) -> JobMessage:
        return build_message(record, kind, message_id="m1", time_unix_s=1.5, **facts)

    return build


@pytest.mark.parametrize(
    ("kind", "facts", "text"),
    [
        (
            "attempt_failed",
            {"text": "node 1, rank 3: out of memory", "step": 840, "attempt": 2},
            "Job 12 (cifar): attempt 2 failed at step 840.\nnode 1, rank 3: out of memory\n"
            "Next: it starts again from its newest checkpoint.\nLook: periflow-ray job view 12",
        ),
        (
            "preempted",
            {"text": "node 1, 30 s notice", "step": 812, "next_text": "it saves at step 815."},
            "Job 12 (cifar): a machine is being taken away at step 812.\nnode 1, 30 s notice\n"
            "Next: it saves at step 815.\nLook: periflow-ray job view 12",
        ),
        (
            "resumed",
            {"text": "after 14 s; lost 0 steps", "step": 812},
            "Job 12 (cifar): runs again at step 812.\nafter 14 s; lost 0 steps\nLook: periflow-ray job view 12",
        ),
        ("success", {"step": 1000}, "Job 12 (cifar): has finished at step 1000.\nLook: periflow-ray job view 12"),
        (
            "failed",
            {"text": "exit code 1"},
            "Job 12 (cifar): has failed.\nexit code 1\nNext: nothing starts by itself.\nLook: periflow-ray job view 12",
        ),
        (
            "stopped",
            {"step": 0, "next_text": "continue it with: periflow-ray job resume 12"},
            "Job 12 (cifar): was stopped at step 0.\nNext: continue it with: periflow-ray job resume 12\n"
            "Look: periflow-ray job view 12",
        ),
    ],
)
def test_a_message_says_what_happened_what_is_next_and_where_to_look(
    message: Callable[..., JobMessage], kind: MessageKind, facts: dict[str, Any], text: str
) -> None:
    assert describe_message(message(kind, **facts)) == text


def test_a_job_without_a_name_goes_by_its_number(record: JobRecord) -> None:
    nameless = dataclasses.replace(record, name=None)
    message = build_message(nameless, "success", message_id="m", time_unix_s=0.0)
    assert message.headline == "Job 12: has finished."


def test_a_long_diagnosis_is_cut(message: Callable[..., JobMessage]) -> None:
    assert message("failed", text="\n\n".join("abcdefgh")).text == "a\nb\nc\nd\ne\n..."
    assert message("failed", text="\n".join("abcdef")).text == "a\nb\nc\nd\ne\nf"
    assert message("failed", text="x" * 301).text == "x" * 297 + "..."


def test_a_secret_in_the_cause_is_masked(message: Callable[..., JobMessage]) -> None:
    assert message("failed", text="$ HF_TOKEN=hunter2 python main.py").text == "$ HF_TOKEN=*** python main.py"


def test_programs_get_the_same_as_a_document(message: Callable[..., JobMessage]) -> None:
    assert message_document(message("resumed", text="after 14 s", step=812, attempt=3)) == {
        "id": "m1",
        "kind": "resumed",
        "text": "Job 12 (cifar): runs again at step 812.\nafter 14 s\nLook: periflow-ray job view 12",
        "cause": "after 14 s",
        "next": None,
        "step": 812,
        "attempt": 3,
        "time_unix_s": 1.5,
        "job": {"number": 12, "name": "cifar", "experiment": "vision", "vm": "local", "num_devices": 2},
    }
