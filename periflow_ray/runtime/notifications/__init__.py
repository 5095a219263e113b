"""Telling people about a job, through Slack and webhooks. None of it can hurt the job."""

from __future__ import annotations

from periflow_ray.runtime.notifications.message import MessageKind
from periflow_ray.runtime.notifications.notifier import Notifier, make_notifier

__all__ = ["MessageKind", "Notifier", "make_notifier"]
