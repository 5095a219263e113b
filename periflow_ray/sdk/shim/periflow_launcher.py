"""The two ends of a warm launcher; standard library only, because they run in the interpreter of the job's command.

A torchrun that starts, ``hand_over``, sends what it is and what it was given to the member at ``PERIFLOW_LAUNCHER``.
Where a warm process is there that has imported the same torch in the same environment, that one forks a child which
goes on in its place, and torchrun itself only passes on signals and the child's end. Whatever is in the way, it goes on
by itself, as if nothing were there.

Messages are a JSON document each, after its length in four bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from typing import Any

VARIABLE = "PERIFLOW_LAUNCHER"
ANSWER_TIMEOUT_S = 5.0
MODULE = "torch.distributed.run"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_POLL_S = 0.05
_GO = b"\0"


def is_launcher(argv: list[str], orig_argv: list[str]) -> bool:
    """Whether this interpreter was started as torchrun."""
    if os.path.basename(argv[0]) == "torchrun":
        return True
    return argv[0] == "-m" and MODULE in orig_argv[1 : -len(argv) + 1 or None]


def hand_over() -> None:
    """Let a warm process go on in this one's place; returns if there is none."""
    path = os.environ.get(VARIABLE)
    if not path or not is_launcher(sys.argv, sys.orig_argv):
        return
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(ANSWER_TIMEOUT_S)
        try:
            line.connect(path)
            send(line, describe(), fds=[0, 1, 2])
            if receive(line)[0] != {"taken": True}:
                return
            # Before this the other one does nothing: whatever happens, only one of the two goes on.
            line.sendall(_GO)
        except Exception:  # Whatever it is, such as an older Python: nothing was handed over.
            return
        line.settimeout(None)
        _stand_for(line)


def describe() -> dict[str, Any]:
    """What a warm process has to be like, and what it needs to go on in this one's place."""
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "installed_ns": _read_time_installed(),
        "environ": dict(os.environ),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "umask": _read_umask(),
    }


def send(line: socket.socket, document: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send a document, with file descriptors."""
    content = json.dumps(document).encode()
    message = struct.pack("!I", len(content)) + content
    num_sent = socket.send_fds(line, [message], list(fds)) if fds else 0
    line.sendall(message[num_sent:])


def receive(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next document and its file descriptors; ConnectionError where the other end has gone."""
    content = b""
    fds: list[int] = []
    wanted = 4
    while len(content) < wanted:
        piece, more, _, _ = socket.recv_fds(line, wanted - len(content), 8)
        fds += more
        if not piece:
            raise ConnectionError("the other end has gone")
        content += piece
        if len(content) == 4:
            wanted = 4 + struct.unpack("!I", content)[0]
    return json.loads(content[4:]), fds


def _stand_for(line: socket.socket) -> None:
    """Be the process that was started: pass on its signals, and end as the one that goes on does."""
    for number in _FORWARDED:
        signal.signal(number, lambda number, frame: line.sendall(bytes([number])))
    status = b""
    with contextlib.suppress(OSError):
        while len(status) < 4 and (piece := line.recv(4 - len(status))):
            status += piece
    code = os.waitstatus_to_exitcode(struct.unpack("!i", status)[0]) if len(status) == 4 else -signal.SIGKILL
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _read_time_installed() -> int:
    """When a package was last put into this environment, or taken from it: a warm process has what was there before."""
    try:
        return os.stat(sysconfig.get_paths()["purelib"]).st_mtime_ns
    except OSError:
        return 0


def _read_umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def serve(path: str) -> None:
    """Import torch, tell the member that it is done, and go on in the place of every torchrun that it sends."""
    importlib.import_module(MODULE)
    member = socket.socket(socket.AF_UNIX)
    member.connect(path)
    send(member, {"warm": os.getpid()})
    runs: list[_Run] = []
    while True:
        lines = {run.line: run for run in runs if run.is_open}
        is_running = any(run.pid is not None for run in runs)
        readable, _, _ = select.select([member, *lines], [], [], _POLL_S if is_running else None)
        for line in readable:
            if line is member:
                try:
                    task, fds = receive(member)
                except OSError:
                    # The member has gone, and its keeper ends what is below this process.
                    return
                runs.append(_Run(task, fds))
            else:
                lines[line].take_in([member, *lines])
        runs = [run for run in runs if not run.has_ended()]


class _Run:
    """One torchrun in whose place a child goes on; ``line`` leads to the process that was started."""

    def __init__(self, task: dict[str, Any], fds: list[int]) -> None:
        self.pid: int | None = None
        self.line = socket.socket(fileno=fds[3])
        self.is_open = True
        self._task, self._fds = task, fds[:3]
        with contextlib.suppress(OSError):
            send(self.line, {"taken": True})

    def take_in(self, sockets: list[socket.socket]) -> None:
        """Begin when told to, and pass on signals."""
        content = b""
        with contextlib.suppress(OSError):
            content = self.line.recv(64)
        # At the end of the file the one that was started has gone; whoever ended it sees to what is below this process.
        self.is_open = bool(content)
        for byte in content:
            if byte == _GO[0] and self.pid is None:
                self.pid = os.fork()
                if self.pid == 0:
                    _go_on(self._task, self._fds, sockets)
            elif self.pid is not None:
                os.kill(self.pid, byte)

    def has_ended(self) -> bool:
        """Whether nothing of it is left; tells how it ended."""
        if self.pid is None:
            ended = not self.is_open
        else:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            ended = found != 0
            if ended:
                with contextlib.suppress(OSError):
                    self.line.sendall(struct.pack("!i", status))
        if ended:
            self.line.close()
            for fd in self._fds:
                os.close(fd)
        return ended


def _go_on(task: dict[str, Any], fds: list[int], sockets: list[socket.socket]) -> None:
    """In the child: be torchrun; does not return."""
    code = 1
    try:
        os.setsid()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        for other in sockets:
            other.close()
        os.chdir(task["cwd"])
        os.umask(task["umask"])
        os.environ.clear()
        os.environ.update(task["environ"])
        sys.argv = task["argv"]
        if sys.argv[0] == "-m":
            sys.argv[0] = str(sys.modules[MODULE].__file__)
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        code = sys.modules[MODULE].main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
