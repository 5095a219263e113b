"""Jobs, an experiment and a dataset for tests to look at, written through the store's own writers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from periflow_ray.jobs import JobProgress, JobRecord, JobState, write_progress, write_record, write_state
from periflow_ray.jobs.events import Event
from periflow_ray.jobs.experiments import create_experiment
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.jobs.metrics import Metric, MetricsWriter
from periflow_ray.store.checkpoints import Manifest, StoredFile, checkpoint_key, commit
from periflow_ray.store.datasets import upload_dataset
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import SegmentWriter

# 2026-01-01T00:00:00Z
NEW_YEAR_UNIX_S = 1_767_225_600.0
HOUR_S = 3600.0


def write_sample_jobs(root: StorageRoot, scratch_dir: Path) -> None:
    """Job 1 succeeded on two nodes, job 2 failed, job 3 waits; experiment vision, dataset my-cifar-100."""
    create_experiment(root, "vision")
    _write_finished_job(root)
    write_record(root, build_record(2, name=None, num_devices=1, num_nodes=1, created_unix_s=NEW_YEAR_UNIX_S + HOUR_S))
    message = "node 0 failed: exit code 1.\nModuleNotFoundError: No module named 'einops'"
    started_unix_s = NEW_YEAR_UNIX_S + HOUR_S + 10
    write_state(root, 2, JobState("failed", started_unix_s, started_unix_s + 3.2, started_unix_s, 1, message))
    write_record(
        root,
        build_record(
            3,
            name="llm [large]",
            experiment=None,
            vm="aws-16gb-v100-8g-us-east-2",
            accelerator="V100",
            num_devices=16,
            num_nodes=2,
            dataset=None,
            created_unix_s=NEW_YEAR_UNIX_S + 30 * HOUR_S,
        ),
    )
    write_state(root, 3, JobState("waiting", message="no VM is free"))
    files = scratch_dir / "cifar-100-python"
    (files / "nested").mkdir(parents=True)
    (files / "train").write_bytes(b"x" * 1500)
    (files / "meta").write_bytes(b"x" * 12)
    (files / "nested" / "extra").write_bytes(b"x")
    upload_dataset(root, "my-cifar-100", files, contents_only=False, metadata={"classes": 100})


def build_record(
    job_id: int,
    *,
    name: str | None = "cifar-job",
    experiment: str | None = "vision",
    vm: str = "local",
    accelerator: str = "CPU",
    num_devices: int = 2,
    num_nodes: int = 2,
    dataset: str | None = "my-cifar-100",
    created_unix_s: float = NEW_YEAR_UNIX_S,
) -> JobRecord:
    """A record with the values of the sample's first job."""
    return JobRecord(job_id, name, experiment, vm, accelerator, num_devices, num_nodes, dataset, "kim", created_unix_s)


def _write_finished_job(root: StorageRoot) -> None:
    write_record(root, build_record(1))
    started_unix_s = NEW_YEAR_UNIX_S + 5
    write_state(root, 1, JobState("success", started_unix_s, started_unix_s + 3723, started_unix_s + 3720, 2))
    write_progress(root, 1, JobProgress(20, 20, 2.5, {"loss": 0.25, "lr": 0.1}))
    _write_logs(root)
    _write_metrics(root)
    _write_event(root, Event(NEW_YEAR_UNIX_S, "started", "Attempt 1 starts on 2 nodes.", 1))
    _write_event(root, Event(NEW_YEAR_UNIX_S + 9, "succeeded", "Every node ended with exit code 0.", 2))
    for step in (10, 20):
        name = f"step-{step:08d}"
        file = StoredFile("checkpoint.pt", 31_000_000 + step, "0" * 64, 0, "files/checkpoint.pt")
        root.write_bytes(checkpoint_key(1, name, file.key), b"weights")
        commit(root, Manifest(name, 1, step, 1, 2, 2, NEW_YEAR_UNIX_S + 60 * step, (file,)))
    # A third one was never committed.
    root.write_bytes(checkpoint_key(1, "step-00000030", "files/checkpoint.pt"), b"wei")


def _write_logs(root: StorageRoot) -> None:
    start_unix_ms = int(NEW_YEAR_UNIX_S * 1000)
    for node_rank, lines in (
        (0, {1000: "step 1 loss 2.5", 3000: "step 2 loss 2.25"}),
        (1, {2000: "step 1 loss 2.75", 4000: "[rank1] 50% done"}),
    ):
        writer = LogWriter(root, 1, node_rank)
        for offset_ms, text in lines.items():
            writer.write(text, start_unix_ms + offset_ms)
        writer.flush()


def _write_event(root: StorageRoot, event: Event) -> None:
    # Not through EventWriter, whose events happen now.
    segments = SegmentWriter(root, job_key(1, "events", "driver"))
    segments.append(json.dumps(asdict(event)).encode() + b"\n")
    segments.flush()


def _write_metrics(root: StorageRoot) -> None:
    writer = MetricsWriter(root, 1)
    for step in range(1, 21):
        moment_unix_s = NEW_YEAR_UNIX_S + step
        for rank in (0, 1):
            writer.append([Metric(step, rank, 0, moment_unix_s, {"loss": (5 + rank) / step, "lr": 0.1})])
        if step % 10 == 0:
            writer.append([Metric(step, 0, 0, moment_unix_s, {"val/accuracy": math.nan if step == 10 else 0.75})])
    writer.flush()
