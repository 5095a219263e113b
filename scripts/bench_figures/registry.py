"""All figures by name, in the order they are measured."""

from __future__ import annotations

from collections.abc import Callable

from bench_figures.ckpt_commit import measure_ckpt_commit
from bench_figures.ckpt_interference import measure_ckpt_interference
from bench_figures.ckpt_memory import measure_ckpt_memory
from bench_figures.ckpt_slow_store import measure_ckpt_slow_store
from bench_figures.ckpt_stall import measure_ckpt_stall
from bench_figures.cli_start import measure_cli_start
from bench_figures.cluster import measure_cluster
from bench_figures.dataset_small_files import measure_dataset_small_files
from bench_figures.ddp_throughput import measure_ddp_throughput
from bench_figures.env_reuse import measure_env_reuse
from bench_figures.goodput import measure_goodput
from bench_figures.healthy_overhead import measure_healthy_overhead
from bench_figures.image_overhead import measure_image_overhead
from bench_figures.monitor_scale import measure_monitor_scale
from bench_figures.notice_to_save import measure_notice_to_save
from bench_figures.recovery import measure_recovery
from bench_figures.restart_cost import measure_restart_cost
from bench_figures.row import Row
from bench_figures.sdk_step import measure_sdk_step
from bench_figures.submit_latency import measure_submit_latency
from bench_figures.sweep import measure_sweep
from bench_figures.sweep_10000 import measure_sweep_10000

FIGURES: dict[str, Callable[[], list[Row]]] = {
    "sdk_step": measure_sdk_step,
    "ddp_throughput": measure_ddp_throughput,
    "submit_latency": measure_submit_latency,
    "cli_start": measure_cli_start,
    "ckpt_stall": measure_ckpt_stall,
    "ckpt_commit": measure_ckpt_commit,
    "ckpt_interference": measure_ckpt_interference,
    "ckpt_slow_store": measure_ckpt_slow_store,
    "ckpt_memory": measure_ckpt_memory,
    "monitor_scale": measure_monitor_scale,
    "env_reuse": measure_env_reuse,
    "dataset_small_files": measure_dataset_small_files,
    "recovery": measure_recovery,
    "restart_cost": measure_restart_cost,
    "goodput": measure_goodput,
    "notice_to_save": measure_notice_to_save,
    "healthy_overhead": measure_healthy_overhead,
    "image_overhead": measure_image_overhead,
    "sweep": measure_sweep,
    "sweep_10000": measure_sweep_10000,
    "cluster": measure_cluster,
}
