"""What the driver of a sweep knows of its trials; every change is in the journal, too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from periflow_ray.errors import PeriflowRayError, StorageError
from periflow_ray.jobs import JobRecord, read_progress, read_written_state
from periflow_ray.plan import JobPlan
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.spec.sweep_parameters import Value
from periflow_ray.store.checkpoints import Manifest, latest_committed
from periflow_ray.store.checkpoints.pins import pin, unpin
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import TrialPlace, write_place
from periflow_ray.sweeps.journal import Clone, Journal, Trial, TrialStatus, read_trials
from periflow_ray.sweeps.trials import make_trial_job


class TrialBook:
    """Trials by their numbers; Ray Tune's ids name those that this driver runs.

    Args:
        plan: of the sweep's template.
        record: of the sweep itself.
        patience: with a storage that is away when a trial is to begin.
        note: takes a sentence that the user should read.
    """

    def __init__(
        self,
        root: StorageRoot,
        plan: JobPlan,
        record: JobRecord,
        spec: SweepSpec,
        patience: Patience,
        note: Callable[[str], None],
    ) -> None:
        self._root = root
        self._plan = plan
        self._record = record
        self._spec = spec
        self._patience = patience
        self._note = note
        self._journal = Journal(root, record.job_id)
        self._places: dict[str, TrialPlace] = {}
        self.trials: dict[int, Trial] = read_trials(root, record.job_id)

    @property
    def num_final(self) -> int:
        """How many trials have ended for good."""
        return sum(trial.is_final for trial in self.trials.values())

    def trial_of(self, tune_id: str) -> Trial:
        """The trial that Ray Tune calls so."""
        return self.trials[self._places[tune_id].number]

    def begin(self, number: int, parameters: Mapping[str, Value], tune_id: str) -> None:
        """Let a trial begin, or go on as the job that it is.

        Raises:
            OSError, StorageError: it cannot be written down, and must not begin.
        """
        self._patience.insist(lambda: self._begin(number, parameters, tune_id))

    def _begin(self, number: int, parameters: Mapping[str, Value], tune_id: str) -> None:
        known = self.trials.get(number)
        job_id = known.job_ids[-1] if known is not None else self._make_job(number, parameters)
        self._journal.begin(number, job_id, parameters, tune_id)
        self.trials.setdefault(number, Trial(number, parameters, time.time(), [job_id]))
        self._place(tune_id, TrialPlace(number, job_id))

    def report(self, tune_id: str, step: int, value: float) -> None:
        """The metric of a trial at a step; the same twice is once."""
        trial = self.trial_of(tune_id)
        if trial.reports and trial.step == step:
            return
        trial.take_report(step, value)
        self._journal.report(trial.number, step, value)

    def place(self, tune_id: str, vm: str) -> None:
        """A trial runs on a machine of this VM type."""
        trial = self.trial_of(tune_id)
        if trial.vm != vm:
            trial.vm = vm
            self._journal.place(trial.number, vm)

    def end(self, tune_id: str, status: TrialStatus, why: str | None) -> Trial:
        """A trial has ended; returns what is known of it."""
        trial = self.trial_of(tune_id)
        trial.status, trial.why, trial.ended_unix_s = status, why, time.time()
        if trial.is_final:
            self._unpin(trial)
        self._journal.end(trial.number, status, why, self._count_attempts(trial))
        return trial

    def flush(self) -> None:
        """Make all changes visible.

        Raises:
            OSError, StorageError: not now.
        """
        self._journal.flush()

    def find_source(self, donor: str) -> Manifest | None:
        """The newest checkpoint of a trial; see ``Cloning``."""
        job_id = self._places[donor].job_id
        try:
            source = latest_committed(self._root, job_id)
            total = read_progress(self._root, job_id).total_train_steps
            # At its end there is nothing left to train: a script that goes on from there would fail.
            return None if source is not None and total is not None and source.step >= total else source
        except (OSError, PeriflowRayError) as err:
            self._note(f"trial {self._places[donor].number} is not copied from: {err}")
            return None

    def clone(self, trial: str, donor: str, source: Manifest, parameters: Mapping[str, Any]) -> None:
        """Let a trial go on as a new job from another one's checkpoint; see ``Cloning``."""
        self._patience.insist(lambda: self._clone(trial, donor, source, parameters))

    def _clone(self, trial: str, donor: str, source: Manifest, parameters: Mapping[str, Any]) -> None:
        assert source.job_id is not None
        known = self.trial_of(trial)
        job_id = self._make_job(known.number, parameters, source.checkpoint_id)
        # Before anything depends on it; the retention rules of its own job would delete it.
        pin(self._root, source.job_id, source.checkpoint, job_id)
        clone = Clone(self._places[donor].number, source.checkpoint_id, source.step, job_id)
        self._journal.clone(known.number, clone, parameters, trial)
        self._unpin(known)
        known.job_ids.append(job_id)
        known.clones.append(clone)
        known.parameters = parameters
        self._place(trial, TrialPlace(known.number, job_id))
        self._note(
            f"trial {known.number} goes on from checkpoint {clone.checkpoint} of trial {clone.donor}, as job {job_id}"
        )

    def _make_job(self, number: int, parameters: Mapping[str, Value], start_from: str | None = None) -> int:
        return make_trial_job(
            self._root,
            self._plan,
            self._record,
            number=number,
            parameters=parameters,
            device_share=self._spec.resources.device,
            start_from=start_from,
        )

    def _place(self, tune_id: str, place: TrialPlace) -> None:
        write_place(self._root, self._record.job_id, tune_id, place)
        self._places[tune_id] = place

    def _unpin(self, trial: Trial) -> None:
        """Its first job went on from no other one's checkpoint, and its last one has its own by now, or has ended."""
        if trial.clones:
            clone = trial.clones[-1]
            source_job, _, name = clone.checkpoint.partition("/")
            with contextlib.suppress(OSError, StorageError):
                unpin(self._root, int(source_job), name, clone.job_id)

    def _count_attempts(self, trial: Trial) -> int:
        try:
            return sum(read_written_state(self._root, job_id).attempt for job_id in trial.job_ids)
        except (OSError, PeriflowRayError):
            return 1
