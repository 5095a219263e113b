"""Python runs this at its start in a job's command: lines do not mix, restarts count on, a torchrun may start warm.

The processes of a node share one pipe, and are told to print at once (PYTHONUNBUFFERED, torchrun's ``python -u``), for
which Python writes a line and its end one after the other. From here on it writes them together, and as soon.

A process that takes the place of one that failed, as torchrun's ``--max-restarts`` or a loop in the command start it,
finds in the output folder what was saved since the attempt began; from there it has to count.

For a torchrun see ``periflow_launcher``.
"""

import importlib.machinery
import importlib.util
import io
import os
import sys


def _write_whole_lines() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(line_buffering=True, write_through=False)


def _count_on_after_restart() -> None:
    marks_dir = os.path.dirname(os.environ.get("PERIFLOW_SESSION", ""))
    is_torchruns = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    # A program that follows one that came to its end begins anew.
    if not marks_dir or (not is_torchruns and os.path.exists(os.path.join(marks_dir, "ended-well"))):
        return
    try:
        with open(os.path.join(marks_dir, "saved-step")) as mark:
            os.environ["PROCESSED_ITERS"] = str(int(mark.read()))
    except (OSError, ValueError):  # Nothing was saved yet.
        return


def _run_shadowed() -> None:
    """Run the module of this name that Python would have found without this one."""
    own_dir = os.path.dirname(os.path.abspath(__file__))
    path = [entry for entry in sys.path if os.path.abspath(entry) != own_dir]
    spec = importlib.machinery.PathFinder.find_spec(__name__, path)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _hand_over() -> None:
    if "PERIFLOW_LAUNCHER" in os.environ and "torch" in "".join(getattr(sys, "orig_argv", ())[1:5]):
        import periflow_launcher  # type: ignore[import-not-found]

        periflow_launcher.hand_over()


_write_whole_lines()
_count_on_after_restart()
_hand_over()
_run_shadowed()
