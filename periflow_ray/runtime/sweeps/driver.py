"""The driver of a sweep: Ray Tune chooses and stops the trials, the journal keeps what happened."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import NODE_IP

from periflow_ray.errors import PeriflowRayError, StorageError
from periflow_ray.jobs import JobProgress, JobRecord, read_written_state, write_progress
from periflow_ray.jobs.requests import Request, StopRequest, post_request
from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S, SIGNAL_SAVE_TIMEOUT_S
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.graceful_stop import on_stop_signals
from periflow_ray.runtime.job_requests import JobRequests
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.sweeps.methods import make_scheduler, make_searcher
from periflow_ray.runtime.sweeps.searcher import SweepSearcher
from periflow_ray.runtime.sweeps.trainable import ENDED, FAILS, IS_THERE, LACKS_METRIC, TrialTrainable
from periflow_ray.runtime.sweeps.trial_book import TrialBook
from periflow_ray.runtime.sweeps.trial_job import SweepTask
from periflow_ray.runtime.sweeps.trial_runner import is_worst
from periflow_ray.runtime.sweeps.tuning import (
    TUNE_DIR,
    describe_end,
    describe_trials,
    make_run_config,
    resources_of,
    tune_environment,
)
from periflow_ray.runtime.sweeps.vm_types import TrialMachines
from periflow_ray.spec.sweep import STEP, SweepSpec
from periflow_ray.store.keys import job_key
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.cost import describe_limit
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.journal import TrialStatus, find_best

FLUSH_INTERVAL_S = 0.5
ASK_INTERVAL_S = 2.0


def run_sweep(
    root: StorageRoot,
    state: StateKeeper,
    plan: JobPlan,
    record: JobRecord,
    task: SweepTask,
    *,
    is_interactive: bool = False,
) -> bool:
    """Run a sweep, or go on with it, to its end; whether it found a best trial.

    Args:
        is_interactive: whether the driver is a person's own process, which a signal ends when the trials are saved.
    Raises:
        PeriflowRayError: it cannot be run as it is.
        KeyboardInterrupt, SystemExit: the person's signal.
    """
    insist = Patience(state.note).insist
    spec = insist(lambda: read_sweep(root, record.job_id))
    with tune_environment(spec.max_concurrent):
        if not ray.is_initialized():
            ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
        sweep = insist(lambda: _Sweep(root, state, plan, record, spec, is_interactive))
        with (
            JobRequests(root, record.job_id, sweep.carry_out, on_problem=state.note),
            on_stop_signals(sweep.stop, is_interactive=is_interactive) as signals,
        ):
            succeeded = sweep.run(task)
    if signals and is_interactive:
        raise KeyboardInterrupt if signals[0] == signal.SIGINT else SystemExit(128 + signals[0])
    return succeeded


class _Sweep(tune.Callback):  # type: ignore[misc]
    """Tune tells it what happens; its methods are called in the driver's main thread, but for ``stop``."""

    def __init__(
        self,
        root: StorageRoot,
        state: StateKeeper,
        plan: JobPlan,
        record: JobRecord,
        spec: SweepSpec,
        is_interactive: bool,
    ) -> None:
        self._root = root
        self._state = state
        self._plan = plan
        self._record = record
        self._spec = spec
        self._is_interactive = is_interactive
        # The time goes on when the driver is started again, and begins anew when a user resumes the sweep.
        started_unix_s = read_written_state(root, record.job_id).started_unix_s or time.time()
        self._began_unix_s = max(started_unix_s, record.resumed_unix_s or 0.0)
        self._book = book = TrialBook(root, plan, record, spec, Patience(state.note), state.note)
        self._actors: dict[str, Any] = {}
        self._machines = TrialMachines(plan, f"sweep-{record.job_id}", state.note)
        self._fails: dict[str, str] = {}
        self._live: set[str] = set()
        self._flushed_s = 0.0
        self._asked_s = 0.0
        self._stop_timeout_s = SIGNAL_SAVE_TIMEOUT_S
        self._is_stopped = threading.Event()
        self._is_any_running = False
        self._is_at_limit = False
        self._why_over: str | None = None
        self._error: str | None = None
        self._searcher = SweepSearcher(spec, make_searcher(spec, book.trials), book.trials, book.begin)

    def __getstate__(self) -> dict[str, Any]:
        # For the copy that Tune makes of all it is given, and that nobody restores.
        return {}

    def run(self, task: SweepTask) -> bool:
        spec, plan, record = self._spec, self._plan, self._record
        num_ended = self._book.num_final
        again = f"; {num_ended} have ended before" if self._book.trials else ""
        if self._why_over is None:
            self._state.enter("running", f"runs {spec.num_wanted} trials{again}")
        patience = Patience(self._state.note)
        patience.insist(self._book.settle_pins)
        trainable = tune.with_parameters(
            TrialTrainable, task=task, metric=spec.metric, mode=spec.mode, stop=dict(spec.stop)
        )
        resources = resources_of(plan, spec.resources.device)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                metric=spec.metric,
                mode=spec.mode,
                # The searcher counts: a trial that lost its agent is another one for Tune.
                num_samples=-1,
                search_alg=self._searcher,
                scheduler=make_scheduler(spec, self._book.trials, self._book),
                reuse_actors=True,
            ),
            run_config=make_run_config(
                self._root, record.job_id, self, lambda: self._is_stopped.is_set() and not self._is_any_running
            ),
        )
        with self._machines.open(resources.bundles[0]):
            self._fit(tuner)
        self._book.stop_waiting()
        patience.insist(self._book.flush)
        patience.insist(lambda: self._book.settle_pins(is_over=self._why_over is None or self._is_at_limit))
        self._root.delete(job_key(record.job_id, TUNE_DIR))
        return self._conclude()

    def _fit(self, tuner: tune.Tuner) -> None:
        try:
            tuner.fit()
        except BaseException:
            # A second Ctrl-C: in a notebook the agents would live on.
            for actor in self._actors.values():
                ray.kill(actor)
            raise

    def carry_out(self, request: Request) -> None:
        """What a user asks of the sweep."""
        match request:
            case StopRequest(timeout_s):
                self.stop("requested by the user", timeout_s)
            case _:
                self._state.note("a sweep cannot rehearse a loss; drill one of its trials")

    def stop(self, reason: str, timeout_s: float = SIGNAL_SAVE_TIMEOUT_S) -> None:
        """Begin no more trials, and let those that run save and end."""
        if self._why_over is None:
            self._why_over = reason
            self._state.enter("stopping", f"stopping: {reason}")
        self._stop_timeout_s = timeout_s
        self._searcher.finish()
        self._is_stopped.set()
        self._ask_trials_to_stop()

    def _ask_trials_to_stop(self) -> None:
        """Ask those that do not stop yet: one whose agent has just begun forgets what was asked before."""
        self._asked_s = time.monotonic()
        for tune_id in list(self._live):
            job_id = self._book.trial_of(tune_id).job_ids[-1]
            # What the storage refuses now is asked again.
            with contextlib.suppress(OSError, PeriflowRayError):
                state = read_written_state(self._root, job_id)
                if state.status != "stopping" and not state.has_ended:
                    post_request(self._root, job_id, StopRequest(self._stop_timeout_s))

    # What Tune tells.

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now_s = time.monotonic()
        self._is_any_running = any(trial.status == TuneTrial.RUNNING for trial in trials)
        if now_s - self._flushed_s > FLUSH_INTERVAL_S:
            self._flushed_s = now_s
            try:
                self._book.flush()
            except (OSError, StorageError) as err:
                print(f"the journal is delayed: {err}")
            self._watch_limits()
            num_waiting = sum(trial.status == TuneTrial.PENDING for trial in trials)
            self._machines.take_counts(num_waiting, map(self._book.trial_of, list(self._live)))
        if self._is_stopped.is_set() and now_s - self._asked_s > ASK_INTERVAL_S:
            self._ask_trials_to_stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._actors[trial.trial_id] = trial.temporary_state.ray_actor
        self._live.add(trial.trial_id)
        self._book.start(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if FAILS in result:
            # The next call of the agent raises, and that is final.
            trial.max_failures = 0
            self._fails[trial.trial_id] = result[FAILS]
            if result[LACKS_METRIC] and self._error is None:
                self._error = result[FAILS]
                self.stop(self._error, 0.0)
            return
        if ENDED not in result:
            value = float(result[self._spec.metric])
            vm = self._machines.find_vm_name(result.get(NODE_IP))
            if vm is not None:
                self._book.place(trial.trial_id, vm)
            self._book.report(trial.trial_id, int(result[STEP]), math.nan if is_worst(value) else value)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ended, step = trial.last_result.get(ENDED), trial.last_result.get(STEP, 0)
        if ended is not None:
            self._end(trial.trial_id, "success" if ended == "success" else "stopped", None)
            return
        # Its processes go on, and have to be ended, whether or not another trial takes its agent.
        max_t = self._spec.scheduler.options.get("max_t", math.inf)
        if trial.last_result.get(IS_THERE) or step >= max_t:
            status: TrialStatus = "success"
            why, save_timeout_s = f"came to its end at step {step}", SAVE_TIMEOUT_S
        else:
            status, why, save_timeout_s = "early", f"stopped early by {self._spec.scheduler.name} at step {step}", 0.0
        self._actors[trial.trial_id].end_trial.remote(trial.trial_id, why, save_timeout_s)
        self._end(trial.trial_id, status, why)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        why = self._fails.get(trial.trial_id)
        if why is not None:
            self._end(trial.trial_id, "failed", why)
        elif self._why_over is not None:
            self._end(trial.trial_id, "stopped", "its agent died")
        else:
            self._live.discard(trial.trial_id)
            self._state.note(f"trial {self._book.trial_of(trial.trial_id).number} lost its agent and begins once more")

    def _end(self, tune_id: str, status: TrialStatus, why: str | None) -> None:
        self._live.discard(tune_id)
        text = describe_end(self._book.end(tune_id, status, why), self._spec)
        self._state.note(text)
        if self._is_interactive:
            print(text, flush=True)
        best = find_best(self._book.trials.values(), self._spec.mode)
        metrics = {} if best is None else {f"best {self._spec.metric}": best.best(self._spec.mode)}
        progress = JobProgress(self._book.num_final, self._spec.num_wanted, None, metrics)
        with contextlib.suppress(OSError, StorageError):
            write_progress(self._root, self._record.job_id, progress)

    def _watch_limits(self) -> None:
        if self._why_over is not None:
            return
        reached = describe_limit(self._spec, self._plan, self._book.trials.values(), time.time() - self._began_unix_s)
        if reached is not None:
            # As it was planned to end: whether it succeeds depends on what it has found.
            self._is_at_limit = True
            self.stop(reached)

    def _conclude(self) -> bool:
        trials = self._book.trials.values()
        best = find_best(trials, self._spec.mode)
        text = describe_trials(trials, best, self._spec)
        if self._error is not None:
            self._state.enter("failed", self._error)
            return False
        if self._why_over is not None and not self._is_at_limit:
            self._state.enter("stopped", f"stopped: {self._why_over}; {text}")
            return False
        if best is None:
            self._state.enter("failed", f"no trial reported {self._spec.metric}; {text}")
            return False
        self._state.note(text)
        self._state.enter("success", None)
        return True
