"""What the driver of a sweep knows of its trials; every change is in the journal, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from periflow_ray.errors import PeriflowRayError, StorageError
from periflow_ray.jobs import JobRecord, claim_job_id, read_progress, read_written_state
from periflow_ray.jobs.metrics import iterate_metrics
from periflow_ray.jobs.succession import Ownership, driver_id_of, leave_to_successor
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.sweeps.population import Source
from periflow_ray.runtime.sweeps.trial_runner import as_number
from periflow_ray.spec.sweep import POPULATIONS, SweepSpec
from periflow_ray.spec.sweep_parameters import Value
from periflow_ray.store.checkpoints import latest_committed, read_manifest
from periflow_ray.store.checkpoints.pins import list_pins, pin, unpin
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import TrialPlace, write_place
from periflow_ray.sweeps.journal import Clone, Journal, Trial, TrialStatus
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
        self._ownership = Ownership(root, record.job_id, driver_id_of(record))
        self._journal = Journal(root, record.job_id)
        self._places: dict[str, TrialPlace] = {}
        self._last_claimed: int | None = None
        # Clones that are not needed any more as soon as the journal says so.
        self._unneeded: list[Clone] = []

    @property
    def trials(self) -> Mapping[int, Trial]:
        """What is known of each trial that has begun, by number."""
        return self._journal.trials

    @property
    def num_final(self) -> int:
        """How many trials have ended for good."""
        return sum(trial.is_final for trial in self.trials.values())

    def trial_of(self, tune_id: str) -> Trial:
        """The trial that Ray Tune calls so."""
        return self.trials[self._places[tune_id].number]

    def begin(self, number: int, parameters: Mapping[str, Value], tune_id: str) -> None:
        """Let a trial begin, or go on as the job that it is.

        The journal comes first: whoever takes the sweep up makes the job that it names, if that is missing.

        Raises:
            OSError, StorageError: it cannot be written down, and must not begin.
        """
        insist = self._patience.insist
        known = self.trials.get(number)
        job_id = known.job_ids[-1] if known is not None else insist(self._claim)
        self._journal.begin(number, job_id, parameters, tune_id)
        insist(self.flush)
        self._make_job(self.trials[number])
        self._place(tune_id, TrialPlace(number, job_id))
        if known is not None:
            insist(lambda: self._catch_up(tune_id))

    def start(self, tune_id: str) -> None:
        """There is room for a trial, and it runs from now on."""
        self._journal.start(self.trial_of(tune_id).number)

    def report(self, tune_id: str, step: int, value: float) -> None:
        """The metric of a trial at a step; the same twice is once."""
        trial = self.trial_of(tune_id)
        if not trial.reports or trial.step != step:
            self._journal.report(trial.number, step, value)

    def place(self, tune_id: str, vm: str) -> None:
        """A trial runs on a machine of this VM type."""
        trial = self.trial_of(tune_id)
        if trial.vm != vm:
            self._journal.place(trial.number, vm)

    def end(self, tune_id: str, status: TrialStatus, why: str | None) -> Trial:
        """A trial has ended; returns what is known of it."""
        trial = self.trial_of(tune_id)
        self._journal.end(trial.number, status, why, self._count_attempts(trial))
        if trial.is_final:
            self._unneeded += trial.clones[-1:]
        with contextlib.suppress(OSError, StorageError):
            self.flush()
        return trial

    def stop_waiting(self) -> None:
        """Trials that were to begin, and for which there was no room when the sweep ended, go on when it does."""
        for place in self._places.values():
            if self.trials[place.number].status == "running":
                self._journal.end(place.number, "stopped", "it had not begun to run", None)

    def flush(self) -> None:
        """Make all changes visible; a driver that was overtaken by another one ends here.

        Raises:
            OSError, StorageError: not now.
        """
        if self._journal.is_flushed:
            return
        if self._ownership.is_lost():
            leave_to_successor(self._record.job_id)
        self._journal.flush()
        while self._unneeded:
            self._unpin(self._unneeded.pop())

    def settle_pins(self, *, is_over: bool = False) -> None:
        """Remove the pins that a driver left behind when it was killed.

        Args:
            is_over: whether no trial goes on any more.
        Raises:
            OSError, StorageError: not now.
        """
        needed = set()
        for trial in self.trials.values():
            if trial.clones and not trial.is_final and not is_over:
                needed.add((trial.clones[-1].checkpoint, trial.clones[-1].job_id))
        # Only a population has any, and that is small.
        job_ids = [job_id for trial in self.trials.values() for job_id in trial.job_ids]
        for job_id in job_ids if self._spec.scheduler.name in POPULATIONS else ():
            for checkpoint, by_job in list_pins(self._root, job_id):
                if (f"{job_id}/{checkpoint}", by_job) not in needed:
                    unpin(self._root, job_id, checkpoint, by_job)

    def find_source(self, donor: str) -> Source | None:
        """The newest checkpoint of a trial; see ``Cloning``."""
        place = self._places[donor]
        try:
            newest = latest_committed(self._root, place.job_id)
            if newest is None or newest.step == read_progress(self._root, place.job_id).total_train_steps:
                # From its last step nothing goes on.
                return None
            source = Source(newest, self._claim())
            pin(self._root, place.job_id, newest.checkpoint, source.job_id)
            # The rules of its own job may have deleted it before the pin.
            read_manifest(self._root, place.job_id, newest.checkpoint)
            return source
        except (OSError, PeriflowRayError) as err:
            self._note(f"trial {place.number} is not copied from: {err}")
            return None

    def clone(self, trial: str, donor: str, source: Source, parameters: Mapping[str, Any]) -> None:
        """Let a trial go on as a new job from another one's checkpoint; see ``Cloning``."""
        known, manifest = self.trial_of(trial), source.manifest
        self._unneeded += known.clones[-1:]
        clone = Clone(self._places[donor].number, manifest.checkpoint_id, manifest.step, source.job_id)
        self._journal.clone(known.number, clone, parameters, trial)
        self._patience.insist(self.flush)
        self._make_job(known)
        self._place(trial, TrialPlace(known.number, source.job_id))
        self._note(
            f"trial {known.number} goes on from checkpoint {clone.checkpoint} of trial {clone.donor}, as job "
            f"{clone.job_id}"
        )

    def _claim(self) -> int:
        self._last_claimed = claim_job_id(self._root, self._last_claimed)
        return self._last_claimed

    def _make_job(self, trial: Trial) -> None:
        """Make the job that a trial is now, unless it is there."""
        self._patience.insist(
            lambda: make_trial_job(
                self._root,
                trial.job_ids[-1],
                self._plan,
                self._record,
                number=trial.number,
                parameters=trial.parameters,
                device_share=self._spec.resources.device,
                start_from=trial.clones[-1].checkpoint if trial.clones else None,
            )
        )

    def _catch_up(self, tune_id: str) -> None:
        """Take in what the trial's job has recorded and the journal has not, because a driver was killed before."""
        trial = self.trial_of(tune_id)
        for metric in iterate_metrics(self._root, trial.job_ids[-1]):
            if self._spec.metric in metric.values and metric.step > trial.step:
                self.report(tune_id, metric.step, as_number(metric.values[self._spec.metric]))

    def _place(self, tune_id: str, place: TrialPlace) -> None:
        self._patience.insist(lambda: write_place(self._root, self._record.job_id, tune_id, place))
        self._places[tune_id] = place

    def _unpin(self, clone: Clone) -> None:
        """The job of a clone does not go on from there any more; a pin that stays for now is seen to at the end."""
        source_job, _, name = clone.checkpoint.partition("/")
        with contextlib.suppress(OSError, StorageError):
            unpin(self._root, int(source_job), name, clone.job_id)

    def _count_attempts(self, trial: Trial) -> int | None:
        try:
            return sum(read_written_state(self._root, job_id).attempt for job_id in trial.job_ids)
        except (OSError, PeriflowRayError):
            return None
