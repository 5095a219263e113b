"""Python runs this at its start in a job's command: lines do not mix, restarts count on, a torchrun may start warm.

The processes of a node share one pipe, and are told to print at once (PYTHONUNBUFFERED, torchrun's ``python -u``), for
which Python writes a line and its end one after the other. From here on it writes them together, and as soon. What is
longer than a pipe takes at once is written under a lock that all processes of the pipe share.

The SDK is found from any Python, as far back as 3.8.

A process that takes the place of one that failed, as torchrun's ``--max-restarts`` or a loop in the command start it,
finds in the output folder what was saved since the attempt began; from there it has to count.

For a torchrun see ``periflow_launcher``, and for the code of ``sys.exit()`` see ``periflow_exit``.
"""

import _thread
import fcntl
import importlib.machinery
import importlib.util
import io
import os
import stat
import sys

# Bytes of a line that are kept until its end; Python's own 8 KiB would send a longer line on before that.
_MAX_LINE_BYTES = 64 << 20


class _WholeWrites(io.FileIO):
    """A pipe into which each write goes as a whole.

    Its lock on the pipe keeps other processes out: it ends with the process, and a fork does not have it. The threads
    of this one keep each other out, and a signal's handler may come between them.
    """

    threads = _thread.RLock()

    def write(self, data):  # type: ignore[no-untyped-def]
        with _WholeWrites.threads:
            return self._write_alone(data)  # type: ignore[no-untyped-call]

    def _write_alone(self, data):  # type: ignore[no-untyped-def]
        try:
            fcntl.lockf(self.fileno(), fcntl.LOCK_EX)
        except OSError:  # Not every system has locks on pipes.
            return super().write(data)
        try:
            view = memoryview(data).cast("B")
            num_written = 0
            while num_written < len(view):
                num = super().write(view[num_written:])
                if num is None:  # Somebody made the pipe non-blocking, and it is full.
                    return num_written or None
                num_written += num
            return num_written
        finally:
            fcntl.lockf(self.fileno(), fcntl.LOCK_UN)


def _forget_threads() -> None:
    _WholeWrites.threads = _thread.RLock()


def _write_whole_lines() -> None:
    os.register_at_fork(after_in_child=_forget_threads)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
            continue
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            stream.reconfigure(line_buffering=True, write_through=False)
            continue
        pipe = _WholeWrites(stream.fileno(), "wb", closefd=False)
        pipe.name = stream.name
        whole = io.TextIOWrapper(io.BufferedWriter(pipe), stream.encoding, stream.errors, line_buffering=True)
        whole._CHUNK_SIZE = _MAX_LINE_BYTES  # type: ignore[attr-defined]
        whole.mode = stream.mode  # type: ignore[misc]
        setattr(sys, name, whole)
        setattr(sys, f"__{name}__", whole)


class _OwnPackage:
    """Finds ``periflow_ray``, of which a command needs the SDK alone, for a Python that does not have it.

    A command may use another virtual environment, with another Python. What else that of the job has is not for it.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != "periflow_ray":
            return None
        package_dir = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        return importlib.util.spec_from_file_location(
            name, os.path.join(package_dir, "__init__.py"), submodule_search_locations=[package_dir]
        )


def _count_on_after_restart() -> None:
    marks_dir = os.path.dirname(os.environ.get("PERIFLOW_SESSION", ""))
    if not marks_dir:
        return
    is_torchruns = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    # A program that follows one that came to its end begins anew; where torchrun starts all ranks again because one
    # of another node failed, those of this node may have come to theirs.
    for name in ("saved-step", "ended-step") if is_torchruns else ("saved-step",):
        try:
            with open(os.path.join(marks_dir, name)) as mark:
                os.environ["PROCESSED_ITERS"] = str(int(mark.read()))
            return
        except (OSError, ValueError):  # Nothing was saved yet.
            continue


def _run_shadowed() -> None:
    """Run the module of this name that Python would have found without this one."""
    own_dir = os.path.dirname(os.path.abspath(__file__))
    path = [entry for entry in sys.path if os.path.abspath(entry) != own_dir]
    spec = importlib.machinery.PathFinder.find_spec(__name__, path)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _note_exits() -> None:
    if os.environ.get("PERIFLOW_SESSION"):
        import periflow_exit  # type: ignore[import-not-found]

        periflow_exit.note_exits()


def _hand_over() -> None:
    if "PERIFLOW_LAUNCHER" in os.environ and "torch" in "".join(getattr(sys, "orig_argv", ())[1:5]):
        import periflow_launcher  # type: ignore[import-not-found]

        periflow_launcher.hand_over()


_write_whole_lines()
sys.meta_path.append(_OwnPackage)
_count_on_after_restart()
_note_exits()
_hand_over()
_run_shadowed()
