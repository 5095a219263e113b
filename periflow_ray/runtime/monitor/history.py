"""The job's attempts so far: written to the storage root as they begin and end, and whether there may be another."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import Callable

from periflow_ray.errors import DocumentError, StorageError
from periflow_ray.jobs import attempts, read_reported_step
from periflow_ray.jobs.attempts import AttemptRecord, SaveRecord
from periflow_ray.jobs.resumes import read_resumed_attempts
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.restart_policy import AttemptEnd, refuse_restart
from periflow_ray.store.root import StorageRoot

UPDATE_INTERVAL_S = 5.0


class History:
    """Reads what earlier drivers of the job recorded.

    Args:
        max_failures: restarts after failures; -1 for any number.
        note: takes a sentence for the user, for each document of the job that cannot be read and is left out.
    """

    def __init__(
        self, root: StorageRoot, job_id: int, max_failures: int, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._max_failures = max_failures

        def leave_out(err: DocumentError) -> None:
            note(f"left out of the job's history: {err}")

        self._records = attempts.read_attempts(root, job_id, leave_out)
        # Whoever resumes a job by hand gives it all its restarts again.
        self._last_resumed_attempt = max(read_resumed_attempts(root, job_id, leave_out), default=0)
        numbers = attempts.list_attempt_numbers(root, job_id)
        self._last_read_number = max([0, *numbers, *(record.number for record in self._records)])
        known = {record.number for record in self._records}
        self._num_unknown = sum(number > self._last_resumed_attempt for number in numbers if number not in known)
        self._next_update_s = 0.0
        self._writing = asyncio.Lock()
        self._unwritten: dict[int, AttemptRecord] = {}

    @property
    def last_number(self) -> int:
        """The newest attempt's number, even if its record cannot be read; 0 before the first."""
        return max(self._last_read_number, self._records[-1].number if self._records else 0)

    def find_ended(self, number: int) -> AttemptRecord | None:
        """An attempt that has ended."""
        return next((r for r in self._records if r.number == number and r.ended_unix_s is not None), None)

    async def begin(self, attempt: Attempt) -> None:
        """Record a new attempt; one that nobody ended was cut short by the death of an earlier driver of the job."""
        if self._records:
            await self._complete_newest(attempt.resumed_step)
        self._records.append(self._describe(attempt, attempt.resumed_step, None))
        await self._write_newest()

    async def _complete_newest(self, resumable_step: int) -> None:
        known = self._records[-1]
        if known.ended_unix_s is None:
            last_step = await asyncio.to_thread(read_reported_step, self._root, self._job_id)
            newest = attempts.close_attempt(
                known, ended_unix_s=time.time(), last_step=last_step, resumable_step=resumable_step
            )
        else:
            newest = attempts.count_checkpoint(known, resumable_step)
        if newest != known:
            self._records[-1] = newest
            await self._write_newest()

    async def update(self, attempt: Attempt) -> None:
        """Record how far the running attempt is: at its first step, and every few seconds."""
        if self._unwritten:
            await self._write()
        if attempt.first_step_unix_s is None or self.find_ended(attempt.number) is not None:
            return
        newest = self._records[-1]
        is_first = newest.first_step_unix_s is None
        if newest.number != attempt.number or not (is_first or time.monotonic() > self._next_update_s):
            return
        self._next_update_s = time.monotonic() + UPDATE_INTERVAL_S
        self._records[-1] = self._describe(attempt, newest.resumable_step, None)
        await self._write_newest()

    async def end(self, attempt: Attempt, resumable_step: int, save: SaveRecord | None) -> None:
        """Record how the newest attempt ended; once, and if anybody came to it."""
        if not attempt.members or self.find_ended(attempt.number) is not None:
            return
        if attempt.cause == "failure" and attempt.failures:
            # The first rank that failed, not the first member that said so: later ones are usually casualties.
            attempt.text = min(attempt.failures.values(), key=lambda failure: failure.time_unix_s).headline()
        record = dataclasses.replace(self._describe(attempt, resumable_step, save), ended_unix_s=time.time())
        # An attempt whose beginning failed is not among them yet.
        self._records = [*(known for known in self._records if known.number != attempt.number), record]
        await self._write_newest()

    def refuse_restart(self) -> str | None:
        """Why there must not be another attempt; None if there may."""
        ends = [
            AttemptEnd(record.cause, record.last_step, record.resumable_step)
            for record in self._records
            if record.cause is not None and record.cause != "stop" and record.number > self._last_resumed_attempt
        ]
        return refuse_restart(ends, self._max_failures, self._num_unknown)

    async def _write_newest(self) -> None:
        self._unwritten[self._records[-1].number] = self._records[-1]
        await self._write()

    async def _write(self) -> None:
        """Write what is not written yet; where the storage fails, the next call does it: a job must not end for it."""
        # One at a time: an update that overtakes the attempt's end would have it run for ever.
        async with self._writing:
            for number, record in list(self._unwritten.items()):
                try:
                    await asyncio.to_thread(attempts.write_attempt, self._root, self._job_id, record)
                except (OSError, StorageError) as err:
                    print(f"the record of attempt {number} is delayed: {err}", file=sys.stderr)
                    return
                if self._unwritten[number] is record:
                    del self._unwritten[number]

    def _describe(self, attempt: Attempt, resumable_step: int, save: SaveRecord | None) -> AttemptRecord:
        return AttemptRecord(
            number=attempt.number,
            num_nodes=attempt.num_nodes,
            num_devices=attempt.num_devices,
            started_unix_s=attempt.started_unix_s,
            first_step_unix_s=attempt.first_step_unix_s,
            last_step_unix_s=attempt.last_step_unix_s,
            ended_unix_s=None,
            resumed_step=attempt.resumed_step,
            last_step=attempt.last_step,
            resumable_step=resumable_step,
            cause=attempt.cause,
            text=attempt.text,
            save=save,
        )
