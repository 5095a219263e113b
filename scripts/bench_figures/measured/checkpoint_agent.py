"""What a node agent does for checkpoints: ``checkpoint_agent.py STORAGE_URI OUTPUT_DIR AGENT_DIR``.

A session server on ``AGENT_DIR/session``, the uploads, and the job's monitor as an actor of a Ray of its own on
loopback. Asked
    ``commit``        it waits for the next commit and answers when that was, in seconds of the monotonic clock;
    ``delete KEY``    it deletes a key of the storage root;
    ``mark_memory``   it takes its resident memory of now as that without an upload;
    ``peak_memory``   it answers with the MiB above the mark that it had at most since.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ray

from periflow_ray.jobs.events import read_events
from periflow_ray.runtime.command_jobs.reporter import Reporter
from periflow_ray.runtime.command_jobs.session_server import SessionServer
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.attempt import MemberFacts
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.meeting import JobRules
from periflow_ray.runtime.ray_train.train_run import ensure_ray, set_train_environment
from periflow_ray.runtime.worker.checkpoint_uploads import CheckpointUploads
from periflow_ray.store.root import StorageRoot

JOB_ID = 1
COMMIT_TIMEOUT_S = 120.0


def main() -> None:
    storage_uri, output_dir, agent_dir = sys.argv[1:]
    # Whatever Ray prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    set_train_environment()
    ensure_ray()
    agent = Agent(StorageRoot(storage_uri), Path(output_dir), Path(agent_dir))
    print("ready", file=answers)
    for question in sys.stdin:
        print(agent.answer(*question.split()), file=answers)
    agent.close()
    ray.shutdown()


class Agent:
    """The parts of ``runtime.command_jobs.node_agent`` that a checkpoint goes through, put together in the same way."""

    def __init__(self, root: StorageRoot, output_dir: Path, agent_dir: Path) -> None:
        self._root = root
        rules = JobRules(devices_per_member=1, max_failures=0, retention=Retention())
        self._monitor = ray.remote(num_cpus=0, max_concurrency=1000)(Monitor).remote(root, JOB_ID, rules)
        machine = ray.get_runtime_context().get_node_id()
        facts = MemberFacts(member=0, num_members=1, node_rank=0, address="127.0.0.1", port=0, ray_node_id=machine)
        attempt = ray.get(self._monitor.join.remote(("bench", 0), facts)).attempt
        self._uploads = CheckpointUploads(root, JOB_ID, 0, self._monitor, attempt, agent_dir / "snapshots")
        ray.get(self._monitor.start.remote(0))
        self._server = SessionServer(
            agent_dir / "session",
            lambda step, replace_waiting: self._uploads.save_snapshot(output_dir, step, replace_waiting),
            lambda text: print(text, file=sys.stderr),
        )
        self._reporter = Reporter(self._server, self._monitor, attempt, 0, lambda: None)
        self._num_commits = 0
        self._idle_kib = 0

    def answer(self, question: str, *arguments: str) -> str:
        return str(getattr(self, question)(*arguments))

    def close(self) -> None:
        self._uploads.finish()
        self._server.finish()
        self._reporter.close()
        self._server.close()
        ray.get(self._monitor.close.remote())

    def commit(self) -> float:
        try:
            ray.get(self._monitor.next_commit.remote(self._num_commits), timeout=COMMIT_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            for event in read_events(self._root, JOB_ID):
                print(f"{event.kind}: {event.text}", file=sys.stderr)
            raise
        committed_s = time.monotonic()
        self._num_commits += 1
        return committed_s

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


def read_status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
