"""The member's end of the SDK in a command job: listens on a Unix-domain socket for the ranks of this node.

Keeps each rank's step and hands on metrics; makes ``upload_checkpoint`` a meeting of the node's ranks, so that the
snapshot is taken when none of them is writing. A message that cannot be right ends the connection that it came over,
which is said once; nothing else is touched by it.

Long because the ranks' barrier and the announced step share the table of connected ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from periflow_ray.jobs.metrics import Metric
from periflow_ray.loops import describe_error, tell
from periflow_ray.runtime.command_jobs.session_messages import (
    Farewell,
    Greeting,
    LateAnswer,
    RankMessage,
    RankRecords,
    SaveRequest,
    StepAnswer,
    parse_message,
)
from periflow_ray.runtime.member.shell import Records
from periflow_ray.runtime.monitor.contract import Beginning
from periflow_ray.sdk import wire
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW, SAVED_STEP_MARK

logger = logging.getLogger("periflow_ray")

# Ranks of a node start together; one that has not called init this long after another never will.
CONNECT_WINDOW_S = 10.0
SLOW_MEETING_S = 30.0
# Ended processes have hung up; this only bounds the wait for one that escaped.
FINISH_TIMEOUT_S = 5.0
# A rank that is started again may come while the end of its former process is still on its way.
SUCCESSION_TIMEOUT_S = 2.0
# A rank that reads nothing for so long, because it is stopped, does not hold up who speaks to it.
SEND_TIMEOUT_S = 5
# No Python process counts so many steps in a second: a step that is further ahead is a mistake.
MAX_STEPS_PER_S = 10_000_000
_POLL_S = 0.02


@dataclass
class RankState:
    """What the member knows of one connected rank.

    ``host_pid`` is its process for this machine, which counts otherwise than a container; None if it is not known.
    ``is_guess``: it has only guessed that it is this rank; ``has_trained`` if it has made a step, or has recorded or
    saved something. ``waiting_step`` is the checkpoint step at which it waits for the other ranks, if any;
    ``is_saving`` lasts until its files are copied.
    """

    rank: int
    local_rank: int
    local_world_size: int | None
    total_train_steps: int | None
    pid: int
    host_pid: int | None = None
    is_guess: bool = False
    resumed_step: int | None = None
    has_trained: bool = False
    farewell: Farewell | None = None
    step: int = 0
    waiting_step: int | None = None
    replaces_waiting: bool = False
    is_saving: bool = False
    connection: socket.socket | None = field(default=None, repr=False)
    connected_s: float = field(default_factory=time.monotonic)
    waiting_since_s: float = 0.0
    stepped_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class RankEnd:
    """How a rank's process ended: at which step, and whether it failed; ``was_caught`` if it said so itself."""

    rank: int
    pid: int
    step: int
    has_failed: bool
    was_caught: bool

    def describe(self, total_train_steps: int | None) -> str:
        """As the middle of a sentence."""
        of = "" if total_train_steps is None else f" of {total_train_steps}"
        how = (
            "an exception that nobody caught, or by sys.exit() with another code than 0"
            if self.was_caught
            else "a signal or os._exit(), or because the command did not wait for it"
        )
        return f"rank {self.rank} (process {self.pid}) had ended at step {self.step}{of} by {how}"


class _SentAwayError(Exception):
    pass


class SessionServer:
    """Serves the ranks of one node.

    Args:
        socket_path: where to listen.
        save_snapshot: called when all ranks of the node wait, with the step and whether it may take the place of a
            checkpoint whose upload has not begun; an exception's text goes to the ranks.
        on_note: called with sentences the user should read.
        on_late: called with the announced step when a rank is already beyond it, or the ranks saved at different ones.
        resumed_step: where the ranks begin to count.
    """

    def __init__(
        self,
        socket_path: Path,
        save_snapshot: Callable[[int, bool], None],
        on_note: Callable[[str], None],
        on_late: Callable[[int], None] = lambda step: None,
        resumed_step: int = 0,
    ) -> None:
        self._save_snapshot = save_snapshot
        self._on_note = on_note
        self._resumed_step = resumed_step
        self._on_late = on_late
        self._lock = threading.Lock()
        self._ranks: dict[int, RankState] = {}
        # Processes that can only guess which rank they are, while another one is in that place.
        self._unplaced: dict[int, RankState] = {}
        self._ends: dict[int, RankEnd] = {}
        self._saved_step_path = socket_path.with_name(SAVED_STEP_MARK)
        self._metrics: list[Metric] = []
        self._last_steps: dict[int, int] = {}
        self._beginnings: dict[int, Beginning] = {}
        self._total_train_steps: int | None = None
        self._asks_for_saves = False
        self._total_rank = 0
        self._keys = itertools.count()
        self._greeted: set[int] = set()
        self._has_had_session = False
        self._told: set[str] = set()
        self._num_answers = 0
        self._answered = threading.Event()
        self._has_warned_missing = False
        self._has_warned_slow = False
        self._announced_step = NO_STEP
        self._saved_step = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(socket_path))
        self._listener.listen(256)
        self._serving: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name="session-accept", daemon=True)
        self._is_closed = False
        self._has_hung_up = False

    def start(self) -> None:
        """Begin to serve ranks."""
        self._accepting.start()

    @property
    def has_had_session(self) -> bool:
        """Whether any process has called ``init``."""
        return self._has_had_session

    def find_failed_rank(self) -> str | None:
        """What to say of a rank whose last process failed before its last step; None if there is none.

        Call it when all processes have ended, after ``close``.
        """
        with self._lock:
            total = self._total_train_steps
            failed = [end for end in self._ends.values() if end.has_failed and (total is None or end.step < total)]
        # Who says it itself is rather the cause than who was ended.
        first = min(failed, key=lambda end: (not end.was_caught, end.rank), default=None)
        return None if first is None else first.describe(total)

    def take_records(self) -> Records:
        """Everything since the last call."""
        with self._lock:
            metrics, self._metrics = self._metrics, []
            num_steps = self._total_train_steps or math.inf
            is_pausing = all(rank.is_saving or rank.step >= num_steps for rank in self._ranks.values())
            return Records(
                dict(self._last_steps),
                self._total_train_steps,
                tuple(metrics),
                is_pausing,
                self._asks_for_saves,
                beginnings=dict(self._beginnings),
            )

    def ask_steps(self, timeout_s: float) -> None:
        """Let every rank say its step at once, so that the next ``take_records`` has it."""
        with self._lock:
            self._num_answers = 0
            connections = [rank.connection for rank in self._ranks.values()]
        for connection in connections:
            _send(connection, wire.encode("report"))
        deadline_s = time.monotonic() + timeout_s
        while self._num_answers < len(connections) and (left_s := deadline_s - time.monotonic()) > 0:
            self._answered.wait(left_s)
            self._answered.clear()

    @property
    def pids(self) -> dict[int, int]:
        """Process id of each connected rank, as this machine counts."""
        with self._lock:
            return {rank.rank: rank.host_pid for rank in self._ranks.values() if rank.host_pid is not None}

    def announce(self, step: int) -> None:
        """Tell every rank, also later ones, the step of an emergency save (-1 means now, -2 not at all)."""
        with self._lock:
            self._announced_step = step
            connections = self._connections()
        for connection in connections:
            _send(connection, wire.encode("announced", step=step))

    def close(self) -> None:
        """Take in everything that the ranks sent, stop listening and hang up; call it when their processes ended."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._accepting.ident is not None:
            self._finish()
        _hang_up(self._listener)
        with self._lock:
            self._has_hung_up = True
            connections = self._connections()
        for connection in connections:
            if connection is not None:
                _hang_up(connection)

    def _connections(self) -> list[socket.socket | None]:
        return [rank.connection for rank in (*self._ranks.values(), *self._unplaced.values())]

    def _finish(self) -> None:
        # Connections that nobody has accepted yet are still handed out after the shutdown, before its error.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        deadline_s = time.monotonic() + FINISH_TIMEOUT_S
        self._accepting.join(FINISH_TIMEOUT_S)
        for thread in self._serving:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="session", daemon=True)
            self._serving.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # Not its descriptor: that is given to the next connection while this one's end is still on its way.
        key = next(self._keys)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        try:
            for message in wire.read_messages(connection, is_strict=True):
                self._handle(key, connection, message)
            self._note_end(key)
        except _SentAwayError:
            pass
        except ValueError as err:
            self._refuse(key, f"sent something that is not a session message ({err})")
        except Exception as err:
            logger.exception("a session failed")
            self._refuse(key, f"sent something that could not be taken in ({describe_error(err)})")
        finally:
            with self._lock:
                self._ranks.pop(key, None)
                self._unplaced.pop(key, None)
            _hang_up(connection)
            self._save_if_all_wait()

    def _refuse(self, key: int, what: str) -> None:
        with self._lock:
            rank = self._ranks.get(key)
        # Only the SDK speaks here; without a greeting it is a stray program that found the socket.
        who = "a process" if rank is None else f"rank {rank.rank} (process {rank.pid})"
        lost = "" if rank is None else ": its steps and checkpoints are not recorded any more"
        self._note(f"{who} {what}; it was cut off{lost}")

    def _note(self, text: str) -> None:
        """Tell the user, once; that it cannot be told is no reason to end a session."""
        with self._lock:
            if text in self._told:
                return
            self._told.add(text)
        tell(self._on_note, text)

    def _handle(self, key: int, connection: socket.socket, message: dict[str, Any]) -> None:
        if message.get("kind") == "hello" and "version" in message:
            refusal = wire.describe_other_version(message.get("rank", "of a process"), message["version"])
            if refusal is not None:
                # What its other fields mean is not known.
                self._note(refusal)
                _hang_up(connection)
                return
        said = parse_message(message)
        if isinstance(said, Greeting):
            self._greet(key, connection, said)
            return
        if key in self._unplaced and _is_of_training(said, self._first_step):
            self._place(key, self._unplaced[key], insists=True)
        if key in self._ranks:
            self._take(key, said)
        elif key not in self._unplaced:
            raise ValueError("it did not say hello")

    @property
    def _first_step(self) -> int:
        """Where a process that starts now begins to count."""
        return max(self._resumed_step, self._saved_step)

    def _note_end(self, key: int) -> None:
        with self._lock:
            rank = self._ranks.get(key)
            if rank is not None and not self._has_hung_up:
                has_failed = rank.farewell is None or rank.farewell.has_failed
                self._ends[rank.rank] = RankEnd(
                    rank.rank, rank.pid, rank.step, has_failed, was_caught=rank.farewell is not None
                )

    def _take(self, key: int, said: RankMessage) -> None:
        match said:
            case RankRecords(step, metrics, asked_step):
                with self._lock:
                    rank = self._move(key, step)
                    rank.has_trained |= _is_of_training(said, self._first_step)
                    self._asks_for_saves |= asked_step >= 0
                    self._metrics += [
                        Metric(of_step, rank.rank, rank.local_rank, time_unix_s, values)
                        for of_step, time_unix_s, values in metrics
                    ]
                self._save_if_all_wait()
            case StepAnswer(step):
                with self._lock:
                    self._move(key, step)
                    self._num_answers += 1
                self._answered.set()
            case LateAnswer(step):
                self._on_late(step)
            case SaveRequest(step, replace_waiting):
                with self._lock:
                    # Its step is not told by it: where it trains on, it says so.
                    rank = self._require_plausible(key, step)
                    rank.waiting_step = step
                    rank.is_saving = rank.has_trained = True
                    rank.replaces_waiting = replace_waiting
                    rank.waiting_since_s = time.monotonic()
                self._save_if_all_wait()
            case Farewell():
                with self._lock:
                    self._ranks[key].farewell = said

    def _move(self, key: int, step: int) -> RankState:
        rank = self._require_plausible(key, step)
        rank.step = self._last_steps[rank.rank] = step
        rank.stepped_s = time.monotonic()
        return rank

    def _require_plausible(self, key: int, step: int) -> RankState:
        rank = self._ranks[key]
        num_steps = step - max(rank.step, self._resumed_step)
        if num_steps > MAX_STEPS_PER_S * (1.0 + time.monotonic() - rank.stepped_s):
            raise ValueError(f"step {step} so soon after step {rank.step}")
        return rank

    def _greet(self, key: int, connection: socket.socket, greeting: Greeting) -> None:
        rank = RankState(
            rank=greeting.rank,
            local_rank=greeting.local_rank,
            local_world_size=greeting.local_world_size,
            total_train_steps=greeting.total_train_steps,
            pid=greeting.pid,
            host_pid=_find_host_pid(connection, greeting.pid),
            is_guess=greeting.is_guess,
            resumed_step=greeting.resumed_step,
            connection=connection,
        )
        self._has_had_session = True
        self._place(key, rank, insists=not greeting.is_guess)
        with self._lock:
            announced_step = self._announced_step
        if announced_step != NO_STEP:
            _send(connection, wire.encode("announced", step=announced_step))

    def _place(self, key: int, rank: RankState, *, insists: bool) -> None:
        """Let a rank in.

        Args:
            insists: otherwise it waits until it knows better, or until it trains as the rank that it guesses to be.
        Raises:
            _SentAwayError: another process is in its place.
        """
        deadline_s = time.monotonic() + SUCCESSION_TIMEOUT_S
        while True:
            with self._lock:
                others = {
                    place: other for place, other in self._ranks.items() if other.rank == rank.rank and place != key
                }
                blocking = [other for other in others.values() if not _gives_way(other, rank, insists)]
                if not blocking:
                    for place, other in others.items():
                        del self._ranks[place]
                        if other.pid != rank.pid:
                            self._unplaced[place] = other
                    self._unplaced.pop(key, None)
                    self._forget_guess(key)
                    self._ranks[key] = rank
                    self._note_beginning(rank)
                    former_end = self._ends.pop(rank.rank, None)
                    if former_end is not None and (former_end.has_failed or former_end.pid != rank.pid):
                        # A launcher starts all of them again, so the other ones are on their way.
                        self._greeted = {other.rank for other in self._ranks.values()}
                    self._greeted.add(rank.rank)
                    if rank.total_train_steps is not None and (
                        self._total_train_steps is None or rank.rank <= self._total_rank
                    ):
                        self._total_train_steps, self._total_rank = rank.total_train_steps, rank.rank
                    return
                if not insists:
                    self._unplaced[key] = rank
                    return
            if time.monotonic() >= deadline_s:
                break
            time.sleep(_POLL_S)
        self._note(
            f"process {rank.pid} says that it is rank {rank.rank}, and so does process {blocking[0].pid}: steps and "
            "checkpoints of the second one are not recorded. Start one process for each rank with torchrun, mpirun "
            "or srun, or call init_process_group() before the first step."
        )
        raise _SentAwayError

    def _note_beginning(self, rank: RankState) -> None:
        former = self._beginnings.get(rank.rank)
        if rank.resumed_step is not None and (former is None or former.pid != rank.pid):
            number = 1 if former is None else former.number + 1
            self._beginnings[rank.rank] = Beginning(number, rank.pid, rank.resumed_step)

    def _forget_guess(self, key: int) -> None:
        former = self._ranks.get(key)
        if former is not None and former.is_guess and not former.has_trained:
            self._greeted.discard(former.rank)
            self._last_steps.pop(former.rank, None)
            self._beginnings.pop(former.rank, None)

    def _save_if_all_wait(self) -> None:
        with self._lock:
            waiting = [rank for rank in self._ranks.values() if rank.waiting_step is not None]
            if not waiting:
                return
            step = max(rank.waiting_step for rank in waiting if rank.waiting_step is not None)
            others = [rank for rank in self._ranks.values() if rank.waiting_step is None]
            # A rank that is already beyond the step will not come; waiting for it would stop the training.
            passed_by = [rank for rank in others if rank.step > step]
            if self._is_connecting(waiting) or len(others) > len(passed_by):
                note = self._describe_slow_meeting(waiting, others, step)
            else:
                is_mixed = bool(passed_by) or len({rank.waiting_step for rank in waiting}) > 1
                for rank in waiting:
                    rank.waiting_step = None
                note = self._describe_missing_calls(passed_by, step)
        if note is not None:
            self._note(note)
        if any(rank.waiting_step is not None for rank in waiting):
            return
        error: str | None = None
        if is_mixed and self._announced_step == SAVE_NOW:
            # "Now" came between two ranks' questions: their files belong to different steps.
            self._on_late(SAVE_NOW)
        else:
            error = self._try_snapshot(step, any(rank.replaces_waiting for rank in waiting))
        for rank in waiting:
            rank.is_saving = False
            _send(rank.connection, wire.encode("checkpointed", error=error))

    def _try_snapshot(self, step: int, replace_waiting: bool) -> str | None:
        try:
            self._save_snapshot(step, replace_waiting)
        except OSError as err:
            return str(err)
        except Exception as err:  # The ranks wait for an answer, whatever it was.
            logger.exception("the checkpoint of step %d was not saved", step)
            return f"{type(err).__name__}: {err}"
        self._saved_step = step
        with contextlib.suppress(OSError):  # A process that is started again counts from where the attempt began, then.
            self._saved_step_path.write_text(str(step))
        return None

    def _is_connecting(self, waiting: list[RankState]) -> bool:
        num_expected = max((rank.local_world_size or 0 for rank in waiting), default=0)
        if num_expected <= len(self._greeted):
            return False
        return time.monotonic() - min(rank.connected_s for rank in waiting) < CONNECT_WINDOW_S

    def _describe_missing_calls(self, passed_by: list[RankState], step: int) -> str | None:
        if not passed_by or self._has_warned_missing:
            return None
        self._has_warned_missing = True
        return (
            f"upload_checkpoint() at step {step} was not called on rank {_join_ranks(passed_by)}; call it on all "
            "ranks. The checkpoint holds the files as they were."
        )

    def _describe_slow_meeting(self, waiting: list[RankState], others: list[RankState], step: int) -> str | None:
        if self._has_warned_slow or time.monotonic() - min(r.waiting_since_s for r in waiting) < SLOW_MEETING_S:
            return None
        self._has_warned_slow = True
        behind = [rank for rank in others if rank.step <= step]
        return (
            f"rank {_join_ranks(waiting)} has waited {SLOW_MEETING_S:.0f} s in upload_checkpoint() at step {step} "
            f"for rank {_join_ranks(behind)}. Every rank must call it."
        )


def _is_of_training(said: RankMessage, first_step: int) -> bool:
    """Whether it comes from a process that trains, rather than from one that has only called ``init``."""
    match said:
        case RankRecords(step, metrics, _):
            return step > first_step or bool(metrics)
        case SaveRequest():
            return True
    return False


def _gives_way(other: RankState, rank: RankState, insists: bool) -> bool:
    # The same process has opened another session; or one that has done nothing was wrong with its guess.
    return other.pid == rank.pid or (insists and other.is_guess and not other.has_trained)


def _join_ranks(ranks: list[RankState]) -> str:
    return ", ".join(str(number) for number in sorted(rank.rank for rank in ranks))


def _hang_up(connection: socket.socket) -> None:
    # close() alone neither ends the connection nor wakes the thread that waits in it.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _send(connection: socket.socket | None, message: bytes) -> None:
    if connection is None:
        return
    try:
        connection.sendall(message)
    except OSError:  # The rank is gone; its end is noticed where its connection is read.
        return


def _find_host_pid(connection: socket.socket, pid: int) -> int | None:
    """The peer's process id here, of which it says that it is ``pid``; None where it cannot be known.

    In a container it is another one, and a connection may have come down from a process to its child.
    """
    size = struct.calcsize("3i")
    peer, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if peer == pid:
        return pid
    try:
        with open(f"/proc/{peer}/status") as status:
            ids = next((line.split()[1:] for line in status if line.startswith("NSpid:")), [])
    except OSError:
        return None
    return peer if len(ids) > 1 else pid
