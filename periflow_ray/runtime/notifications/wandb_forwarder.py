"""Sends rank 0's metrics to Weights & Biases, where the package ``wandb`` is installed."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.notifications.outbox import DeliveryError, Outbox
from periflow_ray.runtime.notifications.wandb_run import WandbRun

CLOSE_TIMEOUT_S = 5.0
MAX_WAITING_METRICS = 10_000


class WandbForwarder:
    """``forward`` never waits and never raises; a thread imports ``wandb`` at the first metric and logs them all.

    It has a run of its own beside the one of the script, in the same group: two writers would spoil a run.

    Args:
        on_problem: called once, with a sentence, when metrics do not arrive, from any thread.
    """

    def __init__(
        self, run: WandbRun, on_problem: Callable[[str], None], close_timeout_s: float = CLOSE_TIMEOUT_S
    ) -> None:
        self._run = run
        self._close_timeout_s = close_timeout_s
        self._logged: Any = None
        self._is_given_up = False
        self._dir: str | None = None
        self._outbox: Outbox[Metric] = Outbox(
            "Weights & Biases",
            self._log,
            on_problem,
            max_items=MAX_WAITING_METRICS,
            retry_delays_s=(),
            finish=self._finish,
        )

    def forward(self, metrics: Iterable[Metric]) -> None:
        """Log the numbers among rank 0's metrics, soon."""
        for metric in metrics:
            if metric.rank == 0:
                self._outbox.put(metric)

    def close(self) -> None:
        """Finish the run, within a few seconds."""
        self._outbox.begin_close()
        self._outbox.end_close(time.monotonic() + self._close_timeout_s)

    def _log(self, metric: Metric) -> None:
        if self._is_given_up:
            return
        numbers = {name: value for name, value in metric.values.items() if isinstance(value, (int, float))}
        if not numbers:
            return
        try:
            if self._logged is None:
                self._logged = self._start()
            # The step is a value like others: wandb's own counter does not go back when steps are repeated.
            self._logged.log({**numbers, "step": metric.step})
        except DeliveryError:
            self._is_given_up = True
            raise
        except (Exception, SystemExit) as err:
            # Not its text: that may hold the key.
            self._is_given_up = True
            raise DeliveryError(f"wandb failed ({type(err).__name__})", is_temporary=False) from None

    def _start(self) -> Any:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError:
            raise DeliveryError(
                "the package wandb is not installed where the job's monitor runs; pip install wandb there",
                is_temporary=False,
            ) from None
        variables = self._run.settings
        settings = {"api_key": self._run.api_key, "console": "off", "silent": True}
        if "WANDB_BASE_URL" in variables:
            settings["base_url"] = variables["WANDB_BASE_URL"]
        self._dir = tempfile.mkdtemp(prefix="periflow-wandb-")
        run = wandb.init(
            entity=variables.get("WANDB_ENTITY"),
            project=variables.get("WANDB_PROJECT", self._run.project),
            group=variables.get("WANDB_RUN_GROUP", self._run.group),
            job_type="pf.metric",
            name=f"{self._run.name} (pf.metric)",
            id=f"{self._run.run_id}-metrics",
            resume="allow",
            dir=self._dir,
            settings=settings,
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _finish(self) -> None:
        try:
            if self._logged is not None and not self._is_given_up:
                self._logged.finish()
        finally:
            if self._dir is not None:
                shutil.rmtree(self._dir, ignore_errors=True)
