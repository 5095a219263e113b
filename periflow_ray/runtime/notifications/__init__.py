"""Telling people and services about a job: Slack, webhooks and Weights & Biases. None of it can hurt the job."""

from __future__ import annotations

from periflow_ray.runtime.notifications.message import MessageKind
from periflow_ray.runtime.notifications.notifier import Notifier, make_notifier
from periflow_ray.runtime.notifications.wandb_forwarder import WandbForwarder
from periflow_ray.runtime.notifications.wandb_run import WandbRun, read_wandb_run, wandb_environment

__all__ = [
    "MessageKind",
    "Notifier",
    "WandbForwarder",
    "WandbRun",
    "make_notifier",
    "read_wandb_run",
    "wandb_environment",
]
