"""In which Python a job ran, in the views of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from periflow_ray.cli.plain_text import escape_block, escape_cell
from periflow_ray.jobs.environments import EnvironmentRecord


def describe_environments(records: Sequence[EnvironmentRecord]) -> str:
    """One line, or one for each kind of node where they differ."""
    by_text: dict[str, list[int]] = {}
    for record in records:
        by_text.setdefault(_describe(record), []).append(record.node_rank)
    if len(by_text) == 1:
        return next(iter(by_text))
    return "\n".join(f"node {', '.join(map(str, nodes))}: {text}" for text, nodes in by_text.items())


def environment_document(record: EnvironmentRecord) -> dict[str, Any]:
    """What is known of a node's Python, for programs."""
    return {
        "node_rank": record.node_rank,
        "python": record.python,
        "version": record.version,
        "environment": record.environment,
        "image": record.image,
        "has_cluster_packages": record.has_cluster_packages,
        "packages": list(record.packages),
        "installed_by_command": list(record.installed),
    }


def list_packages(records: Sequence[EnvironmentRecord]) -> str:
    """Every package of each node's Python, as a requirements file has them; nodes that have the same share one list."""
    by_text: dict[str, list[int]] = {}
    for record in records:
        source = _below(record) if record.environment is None else f"environment {record.environment}"
        lines = [f"# Python {record.version}, packages of {source}", *record.packages]
        if not record.packages and record.environment is not None and record.has_cluster_packages:
            lines.append(f"# none: those of {_below(record)} meet what job_setting.python asks for")
        if record.installed:
            lines += ["# installed by the command", *record.installed]
        by_text.setdefault("\n".join(map(escape_block, lines)), []).append(record.node_rank)
    texts = [f"# node {', '.join(map(str, nodes))}\n{text}" for text, nodes in by_text.items()]
    return "\n\n".join(texts)


def _describe(record: EnvironmentRecord) -> str:
    if not record.python:
        return f"none in {_below(record)}"
    text = f"{record.version} ({escape_cell(record.python)})"
    if record.environment is None:
        text += f", {_count(record.packages)} of {_below(record)}"
    else:
        above = f" above those of {_below(record)}" if record.has_cluster_packages else ""
        text += f", environment {record.environment} with {_count(record.packages)}{above}"
    return text + (f", {_count(record.installed)} installed by the command" if record.installed else "")


def _below(record: EnvironmentRecord) -> str:
    return "the cluster" if record.image is None else f"the image {escape_cell(record.image)}"


def _count(packages: Sequence[str]) -> str:
    return f"{len(packages)} package{'' if len(packages) == 1 else 's'}"
