"""Runs the programs that are measured, with a time limit each, so that nothing hangs or stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from bench_figures.row import FigureError

NUM_SHOWN_LINES = 15
MEASURED_DIR = Path(__file__).with_name("measured")
REPOSITORY_DIR = Path(__file__).resolve().parents[2]


def note(text: str) -> None:
    """Say something beside the table."""
    print(f"# {text}", file=sys.stderr, flush=True)


def venv_program(name: str) -> str:
    """A program that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would make a child think that it is in a job, or use another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERIFLOW_", "RAY_"))}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {**kept, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **changes}


def run_program(argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, cwd: Path | None = None) -> str:
    """Run a program that starts no others of its own to its end; returns its standard output.

    Raises:
        FigureError: it failed or took longer than ``timeout_s``.
    """
    try:
        done = subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as err:
        raise FigureError(f"'{' '.join(argv)}' did not end within {timeout_s:.0f} s") from err
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()[-NUM_SHOWN_LINES:]
        raise FigureError("\n  ".join([f"'{' '.join(argv)}' ended with exit code {done.returncode}:", *lines]))
    return done.stdout


class Helper:
    """A program of ``measured/`` that answers every line it is asked with one line, and ends when nobody asks.

    It says ``ready`` first. Use it in a ``with`` statement.
    """

    def __init__(self, name: str, *arguments: str, env: Mapping[str, str], answer_timeout_s: float = 60.0) -> None:
        self._name = name
        self._answer_timeout_s = answer_timeout_s
        self._process = subprocess.Popen(
            [sys.executable, str(MEASURED_DIR / f"{name}.py"), *arguments],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Helper:
        try:
            self._read_answer()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()

    def ask(self, question: str = "") -> str:
        """The answer to a line.

        Raises:
            FigureError: the program ended, or gave no answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as err:
            raise FigureError(f"{self._name} ended early; see its output above") from err
        return self._read_answer()

    def _read_answer(self) -> str:
        assert self._process.stdout is not None
        limit = threading.Timer(self._answer_timeout_s, self._process.kill)
        limit.start()
        try:
            answer = self._process.stdout.readline()
        finally:
            limit.cancel()
        if not answer:
            raise FigureError(f"{self._name} ended, or gave no answer within {self._answer_timeout_s:.0f} s")
        return answer.strip()
