"""The SDK's calls and the one session of this process.

The step path (``start_step``, ``end_step``, ``metric``, ``is_emergency_save``) only touches plain attributes
and a deque: no I/O, no lock, no wait. A background thread drains the deque into the session's channel.

Long because the calls carry their documentation, with examples that a test runs.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from periflow_ray.errors import PeriFlowError
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.sdk.channel import Channel, Hello, MetricRecord
from periflow_ray.sdk.rank import find_rank, has_process_group, is_rank_known
from periflow_ray.sdk.values import plain_values, values_of_now

logger = logging.getLogger("periflow_ray")

SEND_INTERVAL_S = 0.5
# Set for a sweep's trials, whose scheduler is to hear of a metric at once.
_INTERVAL_VARIABLE = "PERIFLOW_REPORT_INTERVAL_S"
# About a minute of metrics at 10,000 calls a second; beyond it the oldest are dropped rather than memory eaten.
MAX_BUFFERED_METRICS = 600_000
MAX_RECORDS_PER_MESSAGE = 1000
# Announced in place of a step: save wherever you are, and nothing is to be saved after all.
SAVE_NOW = -1
NO_STEP = -2
_NEVER = -1
# Files beside the session's socket. The shim reads the step of the newest snapshot at the start of a process; the file
# has the other name once every rank that had called init came to its end without a failure. The last one is of one
# rank, from init to such an end.
SAVED_STEP_MARK = "saved-step"
ENDED_STEP_MARK = "ended-step"
UNFINISHED_MARK = "unfinished-"

if TYPE_CHECKING:
    # Python 3.8, which a command may use, cannot evaluate it.
    ChannelFactory = Callable[[str | None], Channel]
    """Makes the channel of a new session from ``local_log_name``."""


class _TrainStep:
    """The context manager that ``train_step`` returns; one object serves every step."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session.start_step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.end_step()


class Session:
    """Counts steps, buffers metrics and knows the announced emergency step. One per process."""

    def __init__(self) -> None:
        self._step = 0
        self._is_in_step = False
        # The announced step, and the one at which is_emergency_save() was true for it. A new list for each
        # announcement, so that one which arrives during an answer is not overwritten by it.
        self._announced = [NO_STEP, _NEVER]
        self._asked_step = _NEVER
        self._metrics: deque[tuple[int, float, dict[str, Any]]] = deque(maxlen=MAX_BUFFERED_METRICS)
        self._append_metric: Callable[[tuple[int, float, dict[str, Any]]], None] | None = None
        self._train_step = _TrainStep(self)
        self._channel: Channel | None = None
        self._channel_factory: ChannelFactory | None = None
        self._hello: Hello | None = None
        self._settling = threading.Lock()
        self._sender: BackgroundLoop | None = None
        self._faults = _new_faults()

    # The step path.

    def start_step(self) -> None:
        """Begin a training step; the current step becomes the resumed step + 1, + 2, ...

        >>> pf.init(total_train_steps=2)
        >>> pf.start_step()
        >>> loss = 0.5
        >>> pf.end_step()

        Raises:
            PeriFlowError: ``init`` was not called, or the previous step has not ended.
        """
        if self._is_in_step or self._append_metric is None:
            self._refuse("start_step")
        self._is_in_step = True
        self._step += 1

    def end_step(self) -> None:
        """End the current training step.

        >>> pf.init(total_train_steps=2)
        >>> pf.end_step()
        Traceback (most recent call last):
        periflow_ray.errors.PeriFlowError: end_step() was called without start_step().
        >>> pf.start_step()
        >>> pf.end_step()

        Raises:
            PeriFlowError: ``init`` was not called, or no step was started.
        """
        if not self._is_in_step:
            self._refuse("end_step")
        self._is_in_step = False

    def train_step(self) -> _TrainStep:
        """``with train_step():`` is ``start_step()`` before the block and ``end_step()`` after it.

        >>> pf.init(total_train_steps=3)
        >>> for step in range(pf.resumed_step() + 1, 4):
        ...     with pf.train_step():
        ...         print("step", step)
        step 1
        step 2
        step 3
        """
        return self._train_step

    def metric(self, msg: Mapping[str, Any]) -> None:
        """Record a mapping of names to numbers, as they are now; step, rank and local rank are added.

        >>> pf.init(total_train_steps=1, local_log_name="metrics.log")
        >>> with pf.train_step():
        ...     pf.metric({"loss": 0.25})
        >>> pf.upload_checkpoint()  # What was recorded before is written now.
        >>> print(open("metrics.log").read().strip())
        {"step": 1, "rank": 0, "local_rank": 0, "loss": 0.25}

        Raises:
            PeriFlowError: ``init`` was not called.
        """
        append = self._append_metric
        if append is None:
            self._refuse("metric")
        append((self._step, time(), values_of_now(msg)))

    def is_emergency_save(self) -> bool:
        """Whether to save a checkpoint at this step because a machine is about to be taken away.

        True at one step, the same on all ranks, provided that they ask at the same steps, however seldom; never
        outside a job.

        >>> pf.init(total_train_steps=2)
        >>> for step in range(pf.resumed_step() + 1, 3):
        ...     with pf.train_step():
        ...         pass
        ...     if step % 2 == 0 or pf.is_emergency_save():
        ...         print("saves at step", step)
        ...         pf.upload_checkpoint()
        saves at step 2

        Raises:
            PeriFlowError: ``init`` was not called.
        """
        if self._append_metric is None:
            self._refuse("is_emergency_save")
        step = self._asked_step = self._step
        announced = self._announced
        if announced[1] == _NEVER and NO_STEP < announced[0] <= step:
            # The first question at the announced step or after it: in the steps after this one it is False again.
            announced[1] = step
        return announced[1] == step

    # Off the step path.

    def init(self, total_train_steps: int | None = None, local_log_name: str | None = None) -> None:
        """Open the session. Call it before every other SDK function, on all ranks.

        >>> pf.init(total_train_steps=100)

        Args:
            total_train_steps: steps of the whole training, counted from 0, for progress and time left.
            local_log_name: file for metrics outside a job; default ``periflow_trainer_<unix seconds>[_<rank>].log``.
        Raises:
            PeriFlowError: not a positive whole number, or not above the step this job resumes from. A job that was
                restarted after its last step gets through: its script has only its end left to do.
        """
        resumed_step = self.resumed_step()
        _check_total(total_train_steps, resumed_step)
        self._close()
        self._announced = [NO_STEP, _NEVER]
        self._asked_step = _NEVER
        channel = (self._channel_factory or _default_channel)(local_log_name)
        self._hello = Hello(
            *find_rank(), total_train_steps, os.getpid(), is_guess=not is_rank_known(), resumed_step=resumed_step
        )
        channel.open(self._hello, self._set_announced_step, lambda: self._step)
        _mark_unfinished(self._hello.rank)
        _close_in_child()
        self._step = resumed_step
        self._is_in_step = False
        self._channel = channel
        self._faults = faults = _new_faults()
        self._sender = BackgroundLoop(
            "periflow-sender", lambda: self._send_records(channel), _send_interval_s(), faults=faults
        )
        self._sender.start()
        self._append_metric = self._metrics.append

    def resumed_step(self) -> int:
        """The step that this job resumes from; 0 at its first start and outside a job. Also before ``init``.

        >>> first_step = pf.resumed_step() + 1
        >>> first_step
        1
        """
        return int(os.environ.get("PROCESSED_ITERS") or 0)

    def latest_checkpoint_dir(self) -> Path | None:
        """The directory that holds the checkpoint to resume from; None at a job's first start and outside a job."""
        return Path(os.environ["CKPT_DIR"]) if self.resumed_step() > 0 and "CKPT_DIR" in os.environ else None

    def is_initialized(self) -> bool:
        """Whether ``init`` was called in this process, so that the other functions may be."""
        return self._append_metric is not None

    def upload_checkpoint(self, replace_waiting: bool = False) -> None:
        """Save everything in ``output_checkpoint_dir`` as this step's checkpoint.

        Collective: call on all ranks. Returns when the files may be changed again; the upload goes on beside
        the training and is finished before the job ends. While two are on their way, a third waits.

        >>> import os
        >>> from pathlib import Path
        >>> directory = Path(os.environ.get("CKPT_DIR", "checkpoints"))
        >>> directory.mkdir(exist_ok=True)
        >>> pf.init(total_train_steps=1)
        >>> with pf.train_step():
        ...     num_bytes = (directory / "model.pt").write_bytes(b"weights")
        >>> pf.upload_checkpoint()

        Args:
            replace_waiting: take the place of the one that waits for its upload, rather than wait.
        Raises:
            PeriFlowError: ``init`` was not called, or the files could not be copied (for example, disk full).
        """
        if self._append_metric is None or self._channel is None:
            self._refuse("upload_checkpoint")
        # Metrics that cannot be sent are no reason to be without a checkpoint.
        self._try_to_send_records(self._channel)
        self._channel.save_checkpoint(self._step, replace_waiting)

    def use_channel_factory(self, factory: ChannelFactory | None) -> None:
        """Let the runtime decide where sessions of this process send to; None restores the default."""
        self._close()
        self._channel_factory = factory

    def _set_announced_step(self, step: int) -> bool:
        asked_before = self._asked_step
        if step == self._announced[0] != SAVE_NOW:
            # Said twice: it stays answered.
            return True
        # Set before the look at what was asked: a question that comes in between is answered, or at worst called late.
        self._announced = announced = [step, _NEVER]
        asked = self._asked_step
        is_in_time = step in (SAVE_NOW, NO_STEP) or asked < step or (asked_before < step and announced[1] == asked)
        if not is_in_time:
            # It must not save at its next question: the other ranks have saved at an earlier one.
            announced[1] = step
        return is_in_time

    def _try_to_send_records(self, channel: Channel) -> None:
        try:
            self._send_records(channel)
        except Exception as err:
            self._faults.take(err)

    def _send_records(self, channel: Channel) -> None:
        self._settle_rank(channel)
        # What is recorded meanwhile goes with the next call, so that a fast loop cannot keep this one busy forever.
        num_left = len(self._metrics)
        if num_left > 0:
            # Reading them waits for the device, for ever if that hangs: the job hears of the step before.
            channel.send(self._step, [], self._asked_step)
        while True:
            records = self._take_records(min(num_left, MAX_RECORDS_PER_MESSAGE))
            channel.send(self._step, records, self._asked_step)
            num_left -= len(records)
            if num_left <= 0 or not records:
                return

    def _settle_rank(self, channel: Channel) -> None:
        # The sender and a save come here, and it is said once.
        with self._settling:
            hello = self._hello
            if hello is not None and hello.is_guess and has_process_group():
                # It was made after init, as scripts do that torch.multiprocessing.spawn starts.
                self._hello = Hello(*find_rank(), hello.total_train_steps, hello.pid, resumed_step=hello.resumed_step)
                channel.greet(self._hello)
                _unmark_unfinished(hello.rank)
                _mark_unfinished(self._hello.rank)

    def _take_records(self, num_records: int) -> list[MetricRecord]:
        records = []
        # popleft and append are atomic, so draining needs no lock against the training thread.
        for _ in range(num_records):
            try:
                step, time_unix_s, values = self._metrics.popleft()
            except IndexError:  # The other drainer (upload_checkpoint or the sender) took the last one.
                break
            records.append(MetricRecord(step, time_unix_s, plain_values(values)))
        return records

    def _close(self, has_failed: bool = False) -> None:
        channel, self._channel = self._channel, None
        self._append_metric = None
        if channel is None:
            return
        if self._sender is not None:
            self._sender.close()
        self._try_to_send_records(channel)
        try:
            channel.close(has_failed)
        except Exception as err:
            self._faults.take(err)

    def _forget_after_fork(self) -> None:
        # Threads do not survive a fork and the channel belongs to the parent: a data loader's worker process
        # must not speak in its name.
        self._channel = None
        self._sender = None
        self._settling = threading.Lock()
        self._append_metric = None
        self._is_in_step = False
        self._metrics.clear()

    def _refuse(self, call: str) -> NoReturn:
        if self._append_metric is None:
            raise PeriFlowError(
                f"{call}() was called before init(). Call init(total_train_steps) once, before every other "
                "SDK function, in every process that trains."
            )
        if call == "start_step":
            raise PeriFlowError(
                f"start_step() was called twice: step {self._step} has not ended. Call end_step() first, or use "
                "'with train_step():'."
            )
        raise PeriFlowError("end_step() was called without start_step().")


def _check_total(total_train_steps: int | None, resumed_step: int) -> None:
    if total_train_steps is None:
        return
    if not isinstance(total_train_steps, int) or isinstance(total_train_steps, bool) or total_train_steps < 1:
        raise PeriFlowError(f"total_train_steps must be a whole number of at least 1, not {total_train_steps!r}.")
    is_restarted = int(os.environ.get("PERIFLOW_ATTEMPT") or 1) > 1
    if total_train_steps < resumed_step or (total_train_steps == resumed_step and not is_restarted):
        raise PeriFlowError(
            f"total_train_steps is {total_train_steps}, but this job resumes at step {resumed_step}: nothing is "
            "left to train. Count total_train_steps from the start of the training, not from the resumed step."
        )


def _default_channel(local_log_name: str | None) -> Channel:
    socket_path = os.environ.get("PERIFLOW_SESSION")
    if socket_path:
        from periflow_ray.sdk.socket_channel import SocketChannel

        return SocketChannel(socket_path)
    from periflow_ray.sdk.local_channel import LocalChannel

    return LocalChannel(local_log_name)


def _new_faults() -> Faults:
    # This is the user's process: one sentence in its output, and the traceback for who asks for debug messages.
    return Faults(
        "sending progress and metrics",
        lambda text: logger.warning("periflow-ray: %s Training goes on; some metrics may be missing.", text),
        logger.debug,
    )


def _find_mark(name: str) -> Path | None:
    socket_path = os.environ.get("PERIFLOW_SESSION")
    return Path(socket_path).with_name(name) if socket_path else None


def _leave_mark(name: str) -> None:
    if mark := _find_mark(name):
        with contextlib.suppress(OSError):
            mark.touch()


def _mark_unfinished(rank: int) -> None:
    _leave_mark(f"{UNFINISHED_MARK}{rank}")
    if (ended := _find_mark(ENDED_STEP_MARK)) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        # It was another program's.
        with contextlib.suppress(OSError):
            ended.unlink()


def _unmark_unfinished(rank: int) -> None:
    if mark := _find_mark(f"{UNFINISHED_MARK}{rank}"):
        with contextlib.suppress(OSError):
            mark.unlink()


def _mark_ended(rank: int) -> None:
    _unmark_unfinished(rank)
    saved = _find_mark(SAVED_STEP_MARK)
    if saved and not any(saved.parent.glob(f"{UNFINISHED_MARK}*")):
        with contextlib.suppress(OSError):
            saved.rename(saved.with_name(ENDED_STEP_MARK))


def _end_at_exit() -> None:
    has_failed = _has_failed()
    if _session._hello is not None and _session.is_initialized() and not has_failed:
        _mark_ended(_session._hello.rank)
    _session._close(has_failed)


def _has_failed() -> bool:
    # multiprocessing still handles an exception in a child's end.
    kind, error, _ = sys.exc_info()
    if kind is not None:
        return not _is_clean_exit(error)
    # The interpreter keeps an exception that nobody caught; the code of an exit the shim has noted.
    noted = sys.modules.get("periflow_exit")
    return hasattr(sys, "last_type") or getattr(noted, "ended_with", None) is not None


def _close_in_child() -> None:
    """A process that multiprocessing has forked ends without ``atexit``; what it ends with instead is run in all."""
    if "multiprocessing.util" in sys.modules and sys.modules["multiprocessing"].parent_process() is not None:
        sys.modules["multiprocessing.util"].Finalize(None, _end_at_exit, exitpriority=0)


def _is_clean_exit(error: BaseException | None) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)


_session = Session()
# Lets the member tell a script that forgot init() from a command that does not use the SDK.
_leave_mark(f"imported-{os.getpid()}")
atexit.register(_end_at_exit)
os.register_at_fork(after_in_child=_session._forget_after_fork)

init = _session.init
start_step = _session.start_step
end_step = _session.end_step
train_step = _session.train_step
metric = _session.metric
upload_checkpoint = _session.upload_checkpoint
is_emergency_save = _session.is_emergency_save
is_initialized = _session.is_initialized
resumed_step = _session.resumed_step
latest_checkpoint_dir = _session.latest_checkpoint_dir
use_channel_factory = _session.use_channel_factory


def _send_interval_s() -> float:
    return float(os.environ.get(_INTERVAL_VARIABLE) or SEND_INTERVAL_S)
