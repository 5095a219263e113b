"""A command job's member as far as checkpoints go: ``checkpoint_agent.py STORAGE_URI OUTPUT_DIR AGENT_DIR``.

Its shell has a session server on ``AGENT_DIR/session`` and no command; the monitor is an actor of a Ray of its own
on loopback. Asked
    ``commit``        it waits for the next commit and answers when that was, in seconds of the monotonic clock;
    ``delete KEY``    it deletes a key of the storage root;
    ``mark_memory``   it takes its resident memory of now as that without an upload;
    ``peak_memory``   it answers with the MiB above the mark that it had at most since.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import ray

from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.runtime.command_jobs.session_server import SessionServer
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.member import Member
from periflow_ray.runtime.member.shell import Links, Records
from periflow_ray.runtime.monitor.client import RayMonitor, start_monitor
from periflow_ray.runtime.monitor.contract import AttemptStart, EndAttempt, MemberFacts
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.ray_train.train_run import ensure_ray, set_train_environment
from periflow_ray.store.root import StorageRoot

JOB_ID = 1
COMMIT_TIMEOUT_S = 120.0
COMMIT_POLL_S = 0.005
START_TIMEOUT_S = 60.0


def main() -> None:
    storage_uri, output_dir, agent_dir = sys.argv[1:]
    # Whatever Ray prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    set_train_environment()
    ensure_ray()
    agent = Agent(StorageRoot(storage_uri), ServingShell(Path(output_dir), Path(agent_dir)))
    print("ready", file=answers)
    for question in sys.stdin:
        print(agent.answer(*question.split()), file=answers)
    agent.close()
    ray.shutdown()


class ServingShell:
    """Serves the sessions of ranks that somebody else starts; see ``runtime.member.shell``."""

    brings_files = True
    restarts_in_place = True
    meets_others = False

    def __init__(self, output_dir: Path, agent_dir: Path) -> None:
        self.output_dir: Path | None = output_dir
        self.has_started = threading.Event()
        self._agent_dir = agent_dir
        self._is_over = threading.Event()
        self._server: SessionServer | None = None

    def prepare(self, attempt: int) -> Path:
        return self._agent_dir / "snapshots"

    def start(self, start: AttemptStart, links: Links) -> None:
        self._server = SessionServer(self._agent_dir / "session", links.save, tell, on_late=links.miss_save)
        self._server.start()
        self.has_started.set()

    def wait(self) -> Failure | None:
        self._is_over.wait()
        return None

    def take_records(self) -> Records:
        return Records({}) if self._server is None else self._server.take_records()

    def ask_steps(self, timeout_s: float) -> None:
        if self._server is not None:
            self._server.ask_steps(timeout_s)

    def announce(self, step: int) -> None:
        if self._server is not None:
            self._server.announce(step)

    def pids(self) -> Mapping[int, int]:
        return {} if self._server is None else self._server.pids

    def end(self, order: EndAttempt) -> None:
        self._is_over.set()

    def leave_group(self, reason: str) -> None:
        self._is_over.set()

    def check(self) -> Failure | None:
        return None

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class Agent:
    """The member, which runs in a thread, and the answers to what is asked of it."""

    def __init__(self, root: StorageRoot, shell: ServingShell) -> None:
        self._root = root
        self._shell = shell
        rules = JobRules(devices_per_member=1, max_failures=0, retention=Retention())
        self._monitor = start_monitor(root, JOB_ID, rules, num_members=1)
        self._running = threading.Thread(target=run_member, args=(self._monitor, root, shell), name="member")
        self._running.start()
        if not shell.has_started.wait(START_TIMEOUT_S):
            raise TimeoutError(f"the member did not start within {START_TIMEOUT_S:.0f} s")
        self._newest: str | None = None
        self._idle_kib = 0

    def answer(self, question: str, *arguments: str) -> str:
        return str(getattr(self, question)(*arguments))

    def close(self) -> None:
        self._shell.end(EndAttempt())
        self._running.join()
        self._monitor.close()

    def commit(self) -> float:
        deadline_s = time.monotonic() + COMMIT_TIMEOUT_S
        while (newest := self._monitor.newest_commit()) is None or newest.checkpoint == self._newest:
            if time.monotonic() > deadline_s:
                for event in read_events(self._root, JOB_ID):
                    tell(f"{event.kind}: {event.text}")
                raise TimeoutError(f"no commit within {COMMIT_TIMEOUT_S:.0f} s")
            time.sleep(COMMIT_POLL_S)
        self._newest = newest.checkpoint
        return time.monotonic()

    def delete(self, key: str) -> str:
        self._root.delete(key)
        return "deleted"

    def mark_memory(self) -> str:
        # Linux's proc(5): 5 sets the peak back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        self._idle_kib = read_status_kib("VmRSS")
        return "marked"

    def peak_memory(self) -> float:
        return (read_status_kib("VmHWM") - self._idle_kib) / 1024


def run_member(monitor: RayMonitor, root: StorageRoot, shell: ServingShell) -> None:
    machine = ray.get_runtime_context().get_node_id()
    facts = MemberFacts(member=0, num_members=1, node_rank=0, address="127.0.0.1", port=0, ray_node_id=machine)
    with MemberLog(LogWriter(root, JOB_ID, 0), "node 0", is_local=root.is_local) as log:
        Member(monitor, root, JOB_ID, describe=lambda: facts, group="bench", shell=shell, log=log, note=tell).run()


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def read_status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
