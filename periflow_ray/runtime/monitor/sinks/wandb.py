"""Weights & Biases: the run that belongs to a job, and the sink that sends rank 0's metrics to it."""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from periflow_ray.jobs import JobRecord
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.outbox import DeliveryError, Outbox
from periflow_ray.runtime.plugin_credentials import read_plugin_credential
from periflow_ray.store.root import StorageRoot

if TYPE_CHECKING:
    from periflow_ray.spec.models import PluginSpec

DEFAULT_PROJECT = "periflow-ray"
CLOSE_TIMEOUT_S = 5.0
MAX_WAITING_METRICS = 10_000
# Weights & Biases refuses these in the names of projects and in run IDs, and more than 128 characters.
_REFUSED_CHARS = re.compile(r"[/\\#?%:]")
_MAX_NAME_CHARS = 128


@dataclass(frozen=True)
class WandbRun:
    """Where a job's metrics go; all of the job's restarts continue the same run. It pickles, key and all.

    ``settings`` are the variables of Weights & Biases that the user sets for the job, such as WANDB_ENTITY; ``hparams``
    are a trial's parameters, which become the run's config.
    """

    run_id: str
    name: str
    project: str
    group: str
    api_key: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    hparams: Mapping[str, Any] = field(default_factory=dict)

    def open(self, root: StorageRoot, job_id: int, on_problem: Callable[[str], None]) -> WandbSink:
        return WandbSink(self, on_problem)

    def environment(self) -> Mapping[str, str]:
        """Variables with which ``wandb.init()`` in the job continues the job's run.

        One process of the job should call it, usually rank 0, as Lightning's and transformers' loggers do.
        """
        return {
            "WANDB_API_KEY": self.api_key,
            "WANDB_PROJECT": self.project,
            "WANDB_NAME": self.name,
            "WANDB_RUN_GROUP": self.group,
            "WANDB_RUN_ID": self.run_id,
            "WANDB_RESUME": "allow",
        }


def read_wandb_run(
    plugin: PluginSpec | None, record: JobRecord, env: Mapping[str, str], on_problem: Callable[[str], None]
) -> WandbRun | None:
    """The run of a job with ``plugin.wandb``; None without it, or when its credential cannot be used here.

    The project is the job's experiment, or ``periflow-ray``.
    """
    wandb = plugin.wandb if plugin else None
    if wandb is None:
        return None
    credential = read_plugin_credential("plugin.wandb", wandb.credential_id, "wandb", on_problem)
    if credential is None:
        return None
    # Numbers are given out by each storage root, and many of them may share a project.
    origin = f"{record.job_id} {record.created_unix_s} {record.created_by}"
    digest = hashlib.blake2b(origin.encode(), digest_size=4).hexdigest()
    run_id = f"periflow-{record.job_id}-{digest}"
    return WandbRun(
        run_id=run_id,
        name=f"{record.name or 'job'}-{record.job_id}"[:_MAX_NAME_CHARS],
        project=_REFUSED_CHARS.sub("-", record.experiment or DEFAULT_PROJECT)[:_MAX_NAME_CHARS],
        group=run_id,
        api_key=credential.values["api_key"],
        settings={name: value for name, value in env.items() if name.startswith("WANDB_")},
    )


class WandbSink:
    """``record`` never waits and never raises; a thread imports ``wandb`` at the first metric and logs them all.

    It has a run of its own beside the one of the script, in the same group: two writers would spoil a run.

    Args:
        on_problem: called once, with a sentence, when metrics do not arrive, from any thread.
    """

    def __init__(
        self, run: WandbRun, on_problem: Callable[[str], None], close_timeout_s: float = CLOSE_TIMEOUT_S
    ) -> None:
        self._run = run
        self._close_timeout_s = close_timeout_s
        self._logged: _OpenRun | None = None
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

    def record(self, metrics: Sequence[Metric]) -> None:
        """Log the numbers among rank 0's metrics, soon."""
        for metric in metrics:
            if metric.rank == 0:
                self._outbox.put(metric)

    def flush(self) -> None:
        """Nothing to do: the thread logs each metric when it comes."""

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

    def _start(self) -> _OpenRun:
        try:
            wandb = importlib.import_module("wandb")
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
        run: _OpenRun = wandb.init(
            entity=variables.get("WANDB_ENTITY"),
            project=variables.get("WANDB_PROJECT", self._run.project),
            group=variables.get("WANDB_RUN_GROUP", self._run.group),
            job_type="pf.metric",
            name=f"{self._run.name} (pf.metric)",
            id=f"{self._run.run_id}-metrics",
            resume="allow",
            config=dict(self._run.hparams),
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


class _OpenRun(Protocol):
    """What is used of a run of the package wandb."""

    def define_metric(self, name: str, step_metric: str | None = None) -> object: ...

    def log(self, data: Mapping[str, object]) -> None: ...

    def finish(self) -> None: ...
