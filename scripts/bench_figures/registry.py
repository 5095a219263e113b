"""All figures by name, in the order they are measured."""

from __future__ import annotations

from collections.abc import Callable

from bench_figures.cli_start import measure_cli_start
from bench_figures.ddp_throughput import measure_ddp_throughput
from bench_figures.row import Row
from bench_figures.sdk_step import measure_sdk_step
from bench_figures.submit_latency import measure_submit_latency

FIGURES: dict[str, Callable[[], list[Row]]] = {
    "sdk_step": measure_sdk_step,
    "ddp_throughput": measure_ddp_throughput,
    "submit_latency": measure_submit_latency,
    "cli_start": measure_cli_start,
}
