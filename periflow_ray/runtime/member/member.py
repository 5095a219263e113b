"""A Ray Train worker's part in a job: one attempt after the other, until nothing follows.

Long because a member and what it does while its user code runs belong together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import HopelessError, PeriflowRayError
from periflow_ray.jobs import require_job
from periflow_ray.jobs.attempts import EndCause
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.member.insistent import InsistentMonitor
from periflow_ray.runtime.member.log import Log
from periflow_ray.runtime.member.orders import OrderFollower
from periflow_ray.runtime.member.reporter import Reporter
from periflow_ray.runtime.member.restoring import restore_agreed
from periflow_ray.runtime.member.saving import Saving
from periflow_ray.runtime.member.shell import Links, Shell
from periflow_ray.runtime.member.stacks import dump_stacks
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.client import MonitorClient, MonitorLostError
from periflow_ray.runtime.monitor.contract import (
    AttemptStart,
    DumpStacks,
    EndAttempt,
    MemberFacts,
    Next,
    Order,
    Rehearse,
    ReportSteps,
    SaveAt,
)
from periflow_ray.runtime.monitor.drills import die
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.shortages import describe_error
from periflow_ray.store.transfer import Transfer

# How long the ranks of this member may take to say their steps.
ANSWER_TIMEOUT_S = 0.3
# How long a member that has to leave stays for its own uploads, and for the other members' last words.
LEAVE_TIMEOUT_S = 30.0
# After other ends Ray Train knows of a worker that failed, and ends the rest of the group.
_LEAVING_CAUSES: frozenset[EndCause | None] = frozenset({"stop", "preemption", "resize", "hang"})


@dataclass(frozen=True)
class Outcome:
    """How a member's part ended.

    Args:
        following: what follows; None if the job was over before it came.
        failure: of its last attempt.
        restored: the checkpoint that its last attempt began with.
    """

    following: Next | None
    failure: Failure | None = None
    restored: Manifest | None = None


class Member:
    """Joins, restores, runs the user's code in its shell, saves, carries out orders, and leaves.

    Args:
        describe: gives this member's facts, anew for each attempt.
        group: name of the worker group.
        note: takes a sentence that the user should read.
        bandwidth_bytes_per_s: what checkpoint uploads may use; None for all.
        on_join: called with each attempt's start.
    """

    def __init__(
        self,
        monitor: MonitorClient,
        root: StorageRoot,
        job_id: int,
        *,
        describe: Callable[[], MemberFacts],
        group: str,
        shell: Shell,
        log: Log,
        note: Callable[[str], None],
        bandwidth_bytes_per_s: int | None = None,
        on_join: Callable[[AttemptStart], None] = lambda start: None,
    ) -> None:
        self._monitor = InsistentMonitor(monitor)
        self._root = root
        self._job_id = job_id
        self._describe = describe
        self._group = group
        self._shell = shell
        self._log = log
        self._note = note
        self._bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self._on_join = on_join
        self._facts = describe()
        self._restored: Manifest | None = None

    def run(self) -> Outcome:
        """Take part in attempts until the job ends, or goes on with other workers."""
        round_in_group = 0
        while True:
            if round_in_group:
                self._facts = self._describe()
            start = self._monitor.join((self._group, round_in_group), self._facts)
            if start.is_over:
                return Outcome(None)
            self._on_join(start)
            failure = self._run_attempt(start)
            self._log.flush()
            if failure is not None and not self._shell.restarts_in_place:
                self._settle_uploads()
                self._monitor.leave(start.attempt, self._facts.member, failure)
                return Outcome("restart", failure, self._restored)
            self._monitor.leave(start.attempt, self._facts.member, failure)
            following = self._monitor.decide(start.attempt)
            if following != "restart" or not self._shell.restarts_in_place:
                return Outcome(following, failure, self._restored)
            round_in_group += 1

    def _settle_uploads(self) -> None:
        """Ray ends all members with the first that fails: what they save is brought home before."""
        try:
            self._monitor.settle_uploads()
        except MonitorLostError:
            raise
        except Exception:  # The failure is to be told nevertheless.
            traceback.print_exc()

    def _run_attempt(self, start: AttemptStart) -> Failure | None:
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self._shell.close)
                orders = _Orders(self._shell)
                stack.callback(orders.close)
                # Of this attempt alone: an order that ended one may still be on its way when the next one runs.
                OrderFollower(
                    self._monitor,
                    start.attempt,
                    orders.take,
                    on_lost=lambda: orders.take(EndAttempt()),
                    note=self._note,
                ).start()
                patience = Patience(self._note, look=lambda: require_job(self._root, self._job_id, start.claim))
                snapshots_dir = patience.insist(lambda: self._prepare(start.attempt))
                self._restored = self._restore(start.checkpoint, patience)
                reporter = Reporter(
                    self._monitor, start.attempt, self._facts.member, start.report_interval_s, self._shell.take_records
                )
                uploads = None
                if self._shell.brings_files and self._shell.output_dir is not None:
                    uploads = stack.enter_context(
                        CheckpointUploads(
                            self._root,
                            self._job_id,
                            self._facts.node_rank,
                            self._monitor,
                            start.attempt,
                            snapshots_dir,
                            Transfer(self._root, bandwidth_bytes_per_s=self._bandwidth_bytes_per_s),
                            reporter.give_up,
                            lambda: list(self._shell.pids().values()),
                            self._note,
                        )
                    )
                self._monitor.start(start.attempt, self._facts.member)
                if self._shell.meets_others:
                    self._monitor.wait_for_start(start.attempt)
                start = dataclasses.replace(start, checkpoint=self._restored)
                return self._run_user_code(start, reporter, uploads, orders)
        except MonitorLostError:
            raise
        except HopelessError as err:
            return dataclasses.replace(
                self._failure(str(err)), last_lines=tuple(map(self._log.mask.apply, err.last_lines)), is_final=True
            )
        except (OSError, PeriflowRayError) as err:
            return self._failure(describe_error(err))
        except Exception as err:
            # Told as a failure: a worker that raises looks like one that lost its connection.
            traceback.print_exc()
            return self._failure(f"periflow-ray failed: {type(err).__name__}: {err}")

    def _prepare(self, attempt: int) -> Path:
        try:
            return self._shell.prepare(attempt, functools.partial(self._tell_doing, attempt))
        except BaseException:  # It may be tried again.
            self._shell.close()
            raise

    def _tell_doing(self, attempt: int, text: str) -> None:
        with contextlib.suppress(Exception):  # It is a word for those who wait, and no more.
            self._monitor.tell_doing(attempt, self._facts.member, text)

    def _restore(self, checkpoint: Manifest | None, patience: Patience) -> Manifest | None:
        """Fill the output folder with the newest checkpoint that all members can restore; returns that one."""
        output_dir = self._shell.output_dir
        if output_dir is None:
            return None
        facts = self._facts
        target = output_dir if self._shell.brings_files else None
        return restore_agreed(self._root, self._monitor, facts.member, facts.node_rank, checkpoint, target, patience)

    def _run_user_code(
        self, start: AttemptStart, reporter: Reporter, uploads: CheckpointUploads | None, orders: _Orders
    ) -> Failure | None:
        running = _Running(self._monitor, self._shell, self._log, self._facts, self._note, start, reporter, uploads)
        with reporter:
            self._shell.start(start, running.links())
            orders.hand_to(running.carry_out)
            failure = self._shell.wait()
            reporter.is_finishing = True
            running.saving.release()
            upload_error = None if uploads is None else uploads.finish()
            self._shell.close()
        if running.saving.is_ending:
            return None
        if failure is None and upload_error is not None:
            failure = self._failure(f"the last checkpoint could not be saved: {upload_error}")
        return failure or self._shell.check()

    def _failure(self, text: str) -> Failure:
        rank = self._facts.member if self._facts.noun == "rank" else None
        return Failure(self._facts.node_rank, time.time(), rank=rank, summary=self._log.mask.apply(text))


class _Orders:
    """Keeps the orders of an attempt until the user's code runs, but for the one that ends the attempt.

    Making ready what the code needs may take minutes, as packages do. After ``close`` an order is nobody's: what it
    would end is the next attempt's.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._lock = threading.Lock()
        self._waiting: list[Order] = []
        self._carry_out: Callable[[Order], None] | None = None
        self._is_closed = False

    def take(self, order: Order) -> None:
        """Carry out an order, or keep it."""
        with self._lock:
            if self._is_closed:
                return
            carry_out = self._carry_out
            if carry_out is None:
                self._waiting.append(order)
                if isinstance(order, EndAttempt) and self._shell.restarts_in_place:
                    self._shell.end_preparation()
        if carry_out is not None:
            carry_out(order)

    def hand_to(self, carry_out: Callable[[Order], None]) -> None:
        """The code runs: carry out what was kept, in its order, and from then on each order at once."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._carry_out = carry_out
                    return
                order = self._waiting.pop(0)
            carry_out(order)

    def close(self) -> None:
        """The attempt is over."""
        with self._lock:
            self._is_closed = True


class _Running:
    """A member while its user code runs."""

    def __init__(
        self,
        monitor: MonitorClient,
        shell: Shell,
        log: Log,
        facts: MemberFacts,
        note: Callable[[str], None],
        start: AttemptStart,
        reporter: Reporter,
        uploads: CheckpointUploads | None,
    ) -> None:
        self._monitor = monitor
        self._shell = shell
        self._log = log
        self._facts = facts
        self._note = note
        self._attempt = start.attempt
        self._uploads = uploads
        self._reporter = reporter
        self.saving = Saving(monitor, start.attempt, facts.member, shell, uploads, reporter)

    def links(self) -> Links:
        """What the user's code reaches."""
        return Links(
            self.saving.save,
            self.miss_save,
            self.saving.save_from,
            functools.partial(self._monitor.meet_at_report, self._attempt, self._facts.member),
            self._monitor.newest_commit,
        )

    def miss_save(self, step: int) -> None:
        """A rank was already beyond the announced step."""
        try:
            self._monitor.miss_save(self._attempt, step)
        except Exception as err:  # Whoever heard it from the rank has to go on serving it.
            print(f"the monitor does not know that step {step} was missed: {err}", file=sys.stderr)

    def carry_out(self, order: Order) -> None:
        """Do what the monitor orders."""
        match order:
            case ReportSteps():
                self._shell.ask_steps(ANSWER_TIMEOUT_S)
                self._reporter.answer()
            case SaveAt(step, departure):
                self.saving.announce(step)
                self._shell.announce(step, departure)
            case DumpStacks():
                pids = dict(sorted(self._shell.pids().items()))
                # Beside each other: a process that cannot be read takes its time, and the next order ends the attempt.
                with ThreadPoolExecutor(thread_name_prefix="stacks") as threads:
                    stacks = zip(pids, threads.map(dump_stacks, pids.values()), strict=True)
                for rank, lines in stacks:
                    for line in lines:
                        self._log.write(f"[rank {rank}] {line}")
            case EndAttempt():
                self._end(order)
            case Rehearse(drill):
                die(drill, self._facts.node_rank, self._shell.pids())
            case _:
                self._note(f"an order that this version does not know was not carried out: {order}")

    def _end(self, order: EndAttempt) -> None:
        if self._shell.restarts_in_place:
            self.saving.end()
            self._shell.end(order)
        elif order.cause in _LEAVING_CAUSES:
            self.saving.end()
            self._leave_beside(order.text)

    def _leave_beside(self, reason: str) -> None:
        """Leave while the user's code runs, waits in its last save, or is stuck."""
        if self._uploads is not None:
            self._uploads.wait_until_settled(LEAVE_TIMEOUT_S)
        try:
            self._log.flush()
            self._monitor.leave(self._attempt, self._facts.member, None)
            # Ray ends all members with the first that leaves. One that cannot even do this is not waited for.
            deciding = threading.Thread(target=self._monitor.decide, args=(self._attempt,), name="decide", daemon=True)
            deciding.start()
            deciding.join(LEAVE_TIMEOUT_S)
        except Exception as err:
            print(f"member {self._facts.member} leaves without a word: {err}", file=sys.stderr)
        self._shell.leave_group(reason)
