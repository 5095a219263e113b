"""How long a checkpoint holds up the training when the storage is slow, against ``ray.train.report``.

Ray uploads in ``report`` as it does by default: at once, in the training's own thread. Both write to S3 on this machine
through a proxy that lets 50 MB/s pass, one after the other.
"""

from __future__ import annotations

from bench_figures.checkpoint_job import (
    CHECKPOINT_BYTES,
    CheckpointJob,
    bench_directory,
    checkpoint_job,
)
from bench_figures.programs import Helper, clean_environment
from bench_figures.row import Goal, Row, row_of_pairs
from bench_figures.storage_servers import FaultProxy, serve_s3

NUM_REPEATS = 3
BANDWIDTH_BYTES_PER_S = 50_000_000
# A quarter of the other figures' size: 5 s at that bandwidth.
NUM_BYTES = CHECKPOINT_BYTES // 4
RAY_START_TIMEOUT_S = 120.0
GOAL = Goal("<=", 0.1)


def measure_ckpt_slow_store() -> list[Row]:
    """Seconds inside ``upload_checkpoint()`` and inside ``ray.train.report(checkpoint=...)``, same files."""
    with (
        bench_directory() as directory,
        serve_s3(directory) as server,
        FaultProxy(server.port, bandwidth_bytes_per_s=BANDWIDTH_BYTES_PER_S) as proxy,
    ):
        slow_environment = server.reached_through(proxy.port)
        with (
            checkpoint_job(
                directory, server.make_uri("storage"), num_files=1, num_bytes=NUM_BYTES, environment=slow_environment
            ) as job,
            Helper(
                "ray_reporter",
                str(job.output_dir),
                server.make_uri("ray"),
                env=clean_environment(RAY_TMPDIR=str(directory), **slow_environment),
                answer_timeout_s=RAY_START_TIMEOUT_S,
            ) as reporter,
        ):
            pairs = [_measure_pair(job, reporter) for _ in range(NUM_REPEATS)]
    return [row_of_pairs("ckpt_slow_store", [ours for ours, _ in pairs], [ray for _, ray in pairs], "s", GOAL)]


def _measure_pair(job: CheckpointJob, reporter: Helper) -> tuple[float, float]:
    job.write_files()
    stall_s = job.save().stall_s
    # Else both would share the bandwidth.
    job.wait_for_commit()
    return stall_s, float(reporter.ask())
