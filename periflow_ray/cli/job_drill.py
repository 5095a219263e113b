"""``job drill``: rehearses on a running job what happens when a node or a rank dies."""

from __future__ import annotations

import time

import click
from rich.console import Console

from periflow_ray.cli.account_view import attempt_document, read_account
from periflow_ray.cli.duration import duration_callback
from periflow_ray.cli.format import format_time
from periflow_ray.cli.options import job_argument, storage_option
from periflow_ray.cli.output import output_option, talk_console, write_output
from periflow_ray.errors import DocumentError, JobFailedError, PeriflowRayError, UsageError
from periflow_ray.jobs import Job, JobRecord, JobState, read_progress, read_record
from periflow_ray.jobs.account import AttemptAccount
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.requests import Drill, KillNodeDrill, KillRankDrill, NoticeDrill, post_request, withdraw_request
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.root import StorageRoot

# The driver looks for requests about once a second; its storage root may be slow.
ANSWER_TIMEOUT_S = 15.0
TIMEOUT_S = 600.0
_POLL_S = 0.25


@click.command()
@job_argument
@click.option(
    "--notice",
    "notice_s",
    metavar="DURATION",
    callback=duration_callback,
    help="Take a node away with so much notice: 30s, 2m.",
)
@click.option("--node", type=int, help="With --notice: the node's rank.  [default: the last node]")
@click.option("--kill-rank", type=int, metavar="R", help="Kill the process of this rank, without notice.")
@click.option("--kill-node", type=int, metavar="K", help="Kill everything of the job on this node, without notice.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="DURATION",
    callback=duration_callback,
    help="How long to wait for the first step, and then for the job to come back after the notice.  [default: 10m]",
)
@storage_option
@output_option
def drill(
    job_id: int,
    notice_s: float | None,
    node: int | None,
    kill_rank: int | None,
    kill_node: int | None,
    timeout_s: float | None,
    root: StorageRoot,
    output: str,
) -> None:
    """Rehearse on a running job what happens when a node dies, wait until it runs again, and say what it cost.

    It really happens: steps after the newest checkpoint are lost where there is no notice. The exit code is 0 only if
    the job runs again. Run it before you trust a long job to a spot VM.

    \b
    Examples:
      periflow-ray job drill 3 --notice 30s
      periflow-ray job drill 3 --kill-rank 1
      periflow-ray job drill 3 --kill-node 0
    """
    record = read_record(root, job_id)
    wanted = _read_wish(record, notice_s, node, kill_rank, kill_node)
    console = talk_console()
    limit_s = TIMEOUT_S if timeout_s is None else timeout_s
    rehearsal = _Rehearsal(root, record, _wait_for_first_step(root, job_id, limit_s, console), console)
    key = post_request(root, job_id, wanted)
    account = rehearsal.wait(key, limit_s + (notice_s or 0.0))

    def draw(console: Console) -> None:
        console.print(f"Attempt {account.number}: {account.text}", soft_wrap=True)

    write_output(output, attempt_document(account), draw)
    rehearsal.raise_unless_running()


def _read_wish(
    record: JobRecord, notice_s: float | None, node: int | None, kill_rank: int | None, kill_node: int | None
) -> Drill:
    """What to rehearse.

    Raises:
        UsageError: not exactly one thing to rehearse, or there is no such node or rank.
    """
    if sum(value is not None for value in (notice_s, kill_rank, kill_node)) != 1:
        raise UsageError("name one thing to rehearse: --notice 30s, --kill-rank R or --kill-node K.")
    if node is not None and notice_s is None:
        raise UsageError("--node is for --notice; to kill a node use --kill-node K.")
    if kill_rank is not None:
        _require_below(record, "--kill-rank", kill_rank, record.num_devices, "rank")
        return KillRankDrill(kill_rank)
    if kill_node is not None:
        _require_below(record, "--kill-node", kill_node, record.num_nodes, "node")
        return KillNodeDrill(kill_node)
    if node is not None:
        _require_below(record, "--node", node, record.num_nodes, "node")
    assert notice_s is not None
    return NoticeDrill(record.num_nodes - 1 if node is None else node, notice_s)


def _require_below(record: JobRecord, option: str, given: int, limit: int, noun: str) -> None:
    if not 0 <= given < limit:
        allowed = f"only {noun} 0" if limit == 1 else f"{noun}s 0 to {limit - 1}"
        raise UsageError(f"{option} {given}: job {record.job_id} has {allowed}.")


def _wait_for_first_step(root: StorageRoot, job_id: int, timeout_s: float, console: Console) -> int:
    """The number of the running attempt, once it has made a step.

    Raises:
        UsageError: the job has ended or is about to.
        PeriflowRayError: it made no step in time.
    """
    from periflow_ray.submit.jobs import settle_state

    began_s = time.monotonic()
    has_told = False
    while True:
        state = settle_state(root, job_id)
        if state.has_ended or state.status == "stopping":
            raise UsageError(_describe_too_late(job_id, state))
        attempts = read_attempts(root, job_id, _leave_out)
        # While the job waits for machines, the attempt of a driver that was killed still looks as if it ran.
        if state.status == "running" and attempts and _makes_steps(attempts[-1]):
            return attempts[-1].number
        if time.monotonic() - began_s > timeout_s:
            raise PeriflowRayError(
                f"job {job_id} made no step within {timeout_s:.0f} s. See: periflow-ray job view {job_id}"
            )
        if not has_told:
            console.print("waits until the job makes steps")
            has_told = True
        time.sleep(_POLL_S)


def _describe_too_late(job_id: int, state: JobState) -> str:
    how = {"success": "has succeeded", "failed": "has failed", "stopping": "is stopping"}.get(
        state.status, "was stopped"
    )
    return f"job {job_id} {how}; a drill needs a job that runs. Which ones do: periflow-ray job list --status running"


def _leave_out(err: DocumentError) -> None:
    """Nothing: the account at the end tells which records it could not read."""


def _makes_steps(attempt: AttemptRecord) -> bool:
    return attempt.ended_unix_s is None and attempt.first_step_unix_s is not None


class _Rehearsal:
    """Waits for the end of an attempt and the first step of a later one, and shows what happens meanwhile."""

    def __init__(self, root: StorageRoot, record: JobRecord, attempt: int, console: Console) -> None:
        self._root = root
        self._record = record
        self._attempt = attempt
        self._console = console
        self._num_seen_events = len(read_events(root, record.job_id))
        self._state = JobState("running")
        self._runs_again = False

    def wait(self, request_key: str, timeout_s: float) -> AttemptAccount:
        """The account of the attempt's end, once the job runs again or has ended.

        Raises:
            PeriflowRayError: the driver did not take the request, or the job did neither in time.
        """
        from periflow_ray.submit.jobs import settle_state

        job_id = self._record.job_id
        began_s = time.monotonic()
        has_answered = False
        while True:
            # The state first: the last events are written before the final state is.
            self._state = settle_state(self._root, job_id)
            has_answered = has_answered or not self._root.exists(request_key)
            self._show_new_events()
            attempts = read_attempts(self._root, job_id, _leave_out)
            self._runs_again = any(
                record.number > self._attempt and record.first_step_unix_s is not None for record in attempts
            )
            if self._runs_again or self._state.has_ended:
                withdraw_request(self._root, request_key)
                return self._read_account()
            waited_s = time.monotonic() - began_s
            if not has_answered and waited_s > ANSWER_TIMEOUT_S and withdraw_request(self._root, request_key):
                raise PeriflowRayError(
                    f"the driver of job {job_id} did not take the request within {ANSWER_TIMEOUT_S:.0f} s, and it was "
                    f"withdrawn; nothing was done. See: periflow-ray job view {job_id}"
                )
            if waited_s > timeout_s:
                raise PeriflowRayError(
                    f"job {job_id} does not run again after {timeout_s:.0f} s; it is {self._state.status}. "
                    f"See: periflow-ray job events {job_id}"
                )
            time.sleep(_POLL_S)

    def raise_unless_running(self) -> None:
        """Turn a job that did not come back into an exit code.

        Raises:
            JobFailedError: it ended.
        """
        if not self._runs_again:
            diagnosis = f": {self._state.message}" if self._state.message else "."
            raise JobFailedError(
                f"job {self._record.job_id} ended before it ran again; it is {self._state.status}{diagnosis}"
            )

    def _show_new_events(self) -> None:
        events = read_events(self._root, self._record.job_id)
        for event in events[self._num_seen_events :]:
            self._console.print(f"{format_time(event.time_unix_s)}  {event.text}", soft_wrap=True)
        self._num_seen_events = len(events)

    def _read_account(self) -> AttemptAccount:
        job = Job(self._record, self._state, read_progress(self._root, self._record.job_id))
        newest = latest_committed(self._root, self._record.job_id)
        account = read_account(self._root, job, 0 if newest is None else newest.step)
        return next(attempt for attempt in account.attempts if attempt.number == self._attempt)
