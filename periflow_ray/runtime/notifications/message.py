"""What is told of a job: a few lines for people, and the same as a document for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from periflow_ray.jobs import JobRecord
from periflow_ray.plan.masking import mask_text

MessageKind = Literal["attempt_failed", "preempted", "resumed", "success", "failed", "stopped"]

_MAX_LINES = 6
_MAX_LINE_CHARS = 300

_HAPPENED: dict[MessageKind, str] = {
    "attempt_failed": "attempt {attempt} failed",
    "preempted": "a machine is being taken away",
    "resumed": "runs again",
    "success": "has finished",
    "failed": "has failed",
    "stopped": "was stopped",
}
_NEXT: dict[MessageKind, str | None] = {
    "attempt_failed": "it starts again from its newest checkpoint.",
    "preempted": "it goes on from its newest checkpoint when it has machines again.",
    "resumed": None,
    "success": None,
    "failed": "nothing starts by itself.",
    "stopped": "nothing starts by itself.",
}


@dataclass(frozen=True)
class JobMessage:
    """One thing that happened to a job.

    ``text`` is the cause or circumstance in plain words, of one or a few lines; ``next_text`` a sentence on what
    follows. ``step`` is None where it is not known. ``message_id`` tells a message from another, also when it is
    delivered twice.
    """

    message_id: str
    kind: MessageKind
    job_id: int
    job_name: str | None
    experiment: str | None
    vm: str
    num_devices: int
    text: str
    next_text: str | None
    step: int | None
    attempt: int
    time_unix_s: float

    @property
    def headline(self) -> str:
        """Job, what happened and where, in one sentence."""
        happened = _HAPPENED[self.kind].format(attempt=self.attempt)
        return f"{self.job_title}: {happened}{'' if self.step is None else f' at step {self.step}'}."

    @property
    def job_title(self) -> str:
        """Number and name."""
        return f"Job {self.job_id}" + (f" ({self.job_name})" if self.job_name else "")

    @property
    def command(self) -> str:
        """What to type to see more."""
        return f"periflow-ray job view {self.job_id}"


def build_message(
    record: JobRecord,
    kind: MessageKind,
    *,
    message_id: str,
    time_unix_s: float,
    text: str = "",
    next_text: str | None = None,
    step: int | None = None,
    attempt: int = 0,
) -> JobMessage:
    """A message, cut to a few lines and without what looks like a secret."""
    lines = [line.rstrip() for line in mask_text(text).splitlines() if line.strip()]
    shown = [line if len(line) <= _MAX_LINE_CHARS else f"{line[: _MAX_LINE_CHARS - 3]}..." for line in lines]
    return JobMessage(
        message_id=message_id,
        kind=kind,
        job_id=record.job_id,
        job_name=record.name,
        experiment=record.experiment,
        vm=record.vm,
        num_devices=record.num_devices,
        text="\n".join(shown if len(shown) <= _MAX_LINES else [*shown[: _MAX_LINES - 1], "..."]),
        next_text=_NEXT[kind] if next_text is None else next_text,
        step=step,
        attempt=attempt,
        time_unix_s=time_unix_s,
    )


def describe_message(message: JobMessage) -> str:
    """The message as plain text of a few lines."""
    lines = [message.headline, message.text]
    if message.next_text:
        lines.append(f"Next: {message.next_text}")
    lines.append(f"Look: {message.command}")
    return "\n".join(line for line in lines if line)


def message_document(message: JobMessage) -> dict[str, Any]:
    """The message as plain data; ``text`` is all of it in words, which chat servers show."""
    return {
        "id": message.message_id,
        "kind": message.kind,
        "text": describe_message(message),
        "cause": message.text,
        "next": message.next_text,
        "step": message.step,
        "attempt": message.attempt,
        "time_unix_s": message.time_unix_s,
        "job": {
            "number": message.job_id,
            "name": message.job_name,
            "experiment": message.experiment,
            "vm": message.vm,
            "num_devices": message.num_devices,
        },
    }
