"""Why a command failed, in plain words: from its exit, its last lines and a few facts. Pure text, no I/O."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from periflow_ray.bounded_text import shorten

NUM_SHOWN_LINES = 20
# The log has the whole of a line that is longer.
MAX_LINE_CHARS = 600
MAX_SUMMARY_CHARS = 4_000
# Where an error without a traceback is looked for; further up, a line is more likely a harmless warning.
NUM_LAST_WORDS = 10
# torch puts it before what a rank of a process group prints when it fails.
RANK_PREFIX = re.compile(r"\[rank(\d+)\]: ?")


@dataclass(frozen=True)
class Failure:
    """What a member reports when its user code failed.

    ``time_unix_s`` orders failures of several nodes: the first is the cause, later ones are usually casualties.
    ``summary`` is for failures other than a command's exit. Of one that ``is_final`` another attempt would die as well.
    """

    node_rank: int
    time_unix_s: float
    rank: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    last_lines: tuple[str, ...] = ()
    hint: str | None = None
    summary: str | None = None
    is_final: bool = False

    def headline(self) -> str:
        """Where and how, in one line."""
        return self.describe().split("\n", 1)[0]

    def describe(self) -> str:
        """The diagnosis as the user reads it: where, how it ended, the hint, the last lines."""
        where = f"node {self.node_rank}" + ("" if self.rank is None else f", rank {self.rank}")
        how = shorten(self.summary, MAX_SUMMARY_CHARS) if self.summary else describe_exit(self.exit_code, self.signal)
        text = f"{where}: {how}."
        if self.hint:
            text += f"\nHint: {shorten(self.hint, MAX_SUMMARY_CHARS)}"
        return text + describe_last_lines(self.last_lines)


@dataclass(frozen=True)
class FailureReport:
    """What a launcher's output says of a failed run: ``lines`` are the output without the launcher's own report.

    ``rank``, ``exit_code`` and ``signal`` are of the process that failed first; None where the output does not say.
    """

    lines: tuple[str, ...]
    rank: int | None = None
    exit_code: int | None = None
    signal: int | None = None


def describe_last_lines(lines: Sequence[str]) -> str:
    """What a diagnosis goes on with, where there are lines worth showing."""
    if not lines:
        return ""
    return "\nLast lines:\n" + "\n".join(f"  {shorten(line, MAX_LINE_CHARS)}" for line in lines)


def describe_exit(exit_code: int | None, signal_number: int | None) -> str:
    """How a process ended. A shell reports a signal as exit code 128 + its number."""
    if signal_number is None and exit_code is not None and 128 < exit_code < 160:
        return f"it ended with exit code {exit_code} ({_signal_name(exit_code - 128)})"
    if signal_number is not None:
        return f"it was killed by {_signal_name(signal_number)}"
    if exit_code is not None:
        return f"it ended with exit code {exit_code}"
    return "the command was lost, because its keeper process was killed"


def diagnose(
    *,
    node_rank: int,
    exit_code: int | None,
    signal_number: int | None,
    report: FailureReport,
    time_unix_s: float,
    peak_memory_bytes: int = 0,
    node_memory_bytes: int = 0,
    rank: int | None = None,
    is_container_full: bool = False,
    image_name: str | None = None,
) -> Failure:
    """Find the failing rank, the lines worth showing and, where the cause is known, what to do.

    Args:
        exit_code: the run's own; the launcher's report on its processes knows more where it says something.
        rank: the run's own, where the run is one rank.
        is_container_full: the kernel ended something in its container, for want of memory.
        image_name: the image that the command ran in.
    """
    if report.exit_code is not None or report.signal is not None:
        exit_code, signal_number = report.exit_code, report.signal
    return Failure(
        node_rank=node_rank,
        rank=rank if rank is not None else report.rank,
        exit_code=exit_code,
        signal=signal_number,
        time_unix_s=time_unix_s,
        last_lines=report.lines[-NUM_SHOWN_LINES:],
        hint=_CONTAINER_FULL
        if is_container_full
        else _find_hint(report.lines, exit_code, signal_number, peak_memory_bytes, node_memory_bytes, image_name),
    )


_TRACEBACK = "Traceback (most recent call last):"
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")

# The match nearest to the end wins. A hint may use the match's groups.
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), hint)
    for pattern, hint in (
        (
            r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError|CUDA out of memory",
            "the GPU's memory is full. Lower the batch size, accumulate gradients, or use a VM with more GPU memory "
            "(periflow-ray vm list).",
        ),
        (
            r"DefaultCPUAllocator: (?:can't|not enough) |\bMemoryError\b|std::bad_alloc|Cannot allocate memory",
            "the machine's memory is full. Lower the batch size or the number of data loader workers, or use a VM "
            "with more memory.",
        ),
        (
            r"No module named '?([\w.]*\w)",
            "the Python module '{0}' is missing on the node. Name it in job_setting.python, or install it in the "
            "command (pip install ...).",
        ),
        (
            r"(?:EADDRINUSE|[Aa]ddress already in use)",
            "a port is in use on the node. Use $MASTER_PORT, which is free, instead of a fixed --master_port.",
        ),
        (
            r"invalid device ordinal|You requested gpu: .*\s+But your machine only has",
            "the script asks for more GPUs than the node has. Use --nproc_per_node $NPROC_PER_NODE and LOCAL_RANK.",
        ),
        (
            r"Duplicate GPU detected|[Ww]orld[ _]size\b.*(?:does not match|!=)",
            "the number of processes does not fit the number of devices. Use --nnodes $NUM_NODES "
            "--nproc_per_node $NPROC_PER_NODE.",
        ),
        (
            r"was called before init\(\)",
            "the script uses the SDK without opening it. Call pf.init(total_train_steps=...) once in every process, "
            "before pf.train_step, pf.metric and pf.upload_checkpoint.",
        ),
        (r"total_train_steps is \d+, but this job resumes", "the training is complete: there is no step left to run."),
        (r"No space left on device", "the node's disk is full."),
        (
            r"out of shared memory|insufficient shared memory|shared memory segment /dev/shm\S*"
            r"|unable to (?:allocate shared memory|write to file </torch_|open shared memory)[^\n]*",
            "the node's shared memory (/dev/shm) is full: data loader workers hand their batches over in it. Use fewer "
            "workers (num_workers), or give the machine's container more of it (docker run --shm-size 8g).",
        ),
        (
            r"Too many open files",
            "a process may not open so many files. Raise the limit at the beginning of the command: ulimit -n 65536.",
        ),
        (
            r"The NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version",
            "torch is built for a later CUDA than the node's driver knows. Ask for a torch of an earlier one in "
            "job_setting.python or another image, or use machines with a newer driver.",
        ),
        (
            r"no kernel image is available for execution on the device|is not compatible with the current PyTorch "
            r"installation",
            "torch is not built for GPUs of this kind. Use a version that is, in job_setting.python or another image.",
        ),
        (
            r"Found no NVIDIA driver|Torch not compiled with CUDA enabled|No CUDA GPUs are available",
            "the script needs a GPU, but there is none here. On a laptop choose the device with "
            "torch.cuda.is_available().",
        ),
        (
            r"cd: (\S+): No such file or directory",
            "the job has no directory '{0}'. A workspace given with -d DIR appears as <mount_path>/<name of DIR>.",
        ),
        (
            r"(?:can't open file|No such file or directory)[^\n]*?'?(/?[\w./-]+\.py)'?",
            "'{0}' is not there. A workspace given with -d DIR appears as <mount_path>/<name of DIR>.",
        ),
    )
)
_CONTAINER_FULL = (
    "the memory of its container was full, and the kernel ended a process. Use less, or a larger VM; or allow the "
    "container more, if job_setting.docker.options limits it (--memory)."
)
# A shell goes on after a command that it does not find, so only the exit code tells that it was the cause.
_COMMAND_NOT_FOUND = re.compile(r"(\S+): command not found")
_LOST_PEER = re.compile(
    r"Connection closed by peer|Connection reset by peer|recvValue failed|NCCL.*(?:unhandled|remote)"
)


def _find_hint(
    lines: Sequence[str],
    exit_code: int | None,
    signal_number: int | None,
    peak_bytes: int,
    node_bytes: int,
    image_name: str | None,
) -> str | None:
    if signal_number == signal.SIGKILL or exit_code == 128 + signal.SIGKILL:
        used = f"its largest process used {_gib(peak_bytes)}" + (f" of {_gib(node_bytes)}" if node_bytes else "")
        if node_bytes and peak_bytes > node_bytes / 2:
            return f"the kernel probably ended it because the memory was full ({used}). Use less, or a larger VM."
        return f"somebody or something sent SIGKILL, often because the memory was full ({used})."
    text = _find_error(lines)
    if exit_code == 127 and (missing := _COMMAND_NOT_FOUND.search(text)):
        place = "on the node" if image_name is None else f"in the image {image_name}"
        return f"the program '{missing[1]}' is not installed {place}."
    found = [(match, hint) for pattern, hint in _HINTS for match in pattern.finditer(text)]
    if found:
        match, hint = max(found, key=lambda pair: pair[0].end())
        return hint.format(*match.groups())
    if _LOST_PEER.search(text):
        return "another rank was lost first; look at the other nodes' lines: periflow-ray job log N --show-machine-id."
    return None


def _find_error(lines: Sequence[str]) -> str:
    """The messages of the last traceback and of those it is chained to; the last lines where there is none."""
    plain = [text for line in lines if (text := RANK_PREFIX.sub("", line, count=1).rstrip())]
    start = _find_traceback(plain, len(plain))
    if start is None:
        return "\n".join(plain[-NUM_LAST_WORDS:])
    messages = _leave_out_frames(plain[start:])
    if len(messages) > NUM_SHOWN_LINES:  # The program went on after it.
        return "\n".join(plain[-NUM_LAST_WORDS:])
    while start and plain[start - 1].startswith(_CHAIN) and (earlier := _find_traceback(plain, start)) is not None:
        messages = _leave_out_frames(plain[earlier:start]) + messages
        start = earlier
    return "\n".join(messages)


def _find_traceback(lines: Sequence[str], end: int) -> int | None:
    return next((i for i in reversed(range(end)) if lines[i].startswith(_TRACEBACK)), None)


def _leave_out_frames(lines: Sequence[str]) -> list[str]:
    # Source lines in a traceback may say anything; what went wrong is in the messages.
    kept: list[str] = []
    is_in_frames = False
    for line in lines:
        is_in_frames = line.startswith(_TRACEBACK) or (is_in_frames and line.startswith(" "))
        if not is_in_frames:
            kept.append(line)
    return kept


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
