"""A command job's member whose rank somebody else starts: ``checkpoint_member.py STORAGE_URI``.

Its command only waits; the monitor is an actor of a Ray of its own on loopback. Asked
    ``output_folder`` it answers with the folder that is saved;
    ``socket``        it answers with where a rank finds it;
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
from pathlib import Path

import ray

from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.plan import build_plan, local_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.member import Member
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.monitor.client import RayMonitor, start_monitor
from periflow_ray.runtime.monitor.contract import MemberFacts
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.ray_train.train_run import ensure_ray, set_train_environment
from periflow_ray.spec.models import JobSpec
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

JOB_ID = 1
COMMIT_TIMEOUT_S = 120.0
COMMIT_POLL_S = 0.005
CLAIM = "bench"
START_TIMEOUT_S = 60.0
START_POLL_S = 0.05
OUTPUT_MOUNT_PATH = "/workspace/ckpt"
# The shell starts the command when it serves ranks.
STARTED_MOUNT_PATH = "/workspace/started"
TEMPLATE = {
    "vm": "local",
    "num_devices": 1,
    "job_setting": {
        "type": "custom",
        "docker": {"command": f"touch {STARTED_MOUNT_PATH}; exec sleep infinity"},
        "workspace": {"mount_path": "/workspace"},
    },
    "checkpoint": {"output_checkpoint_dir": OUTPUT_MOUNT_PATH},
}


def main() -> None:
    root = StorageRoot(sys.argv[1])
    # Whatever Ray prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    set_train_environment()
    ensure_ray()
    running = RunningMember(root)
    print("ready", file=answers)
    for question in sys.stdin:
        print(running.answer(*question.split()), file=answers)
    running.close()
    ray.shutdown()


class RunningMember:
    """The member, which runs in a thread, and the answers to what is asked of it."""

    def __init__(self, root: StorageRoot) -> None:
        self._root = root
        root.create_exclusive(job_key(JOB_ID, "claim"), CLAIM.encode())
        self._sandbox = Sandbox(root.uri, JOB_ID, 0)
        rules = JobRules(devices_per_member=1, max_failures=0, retention=Retention())
        self._monitor = start_monitor(root, JOB_ID, rules, num_members=1)
        self._running = threading.Thread(target=run_member, args=(self._monitor, root), name="member")
        self._running.start()
        self._newest: str | None = None
        self._idle_kib = 0
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._sandbox.path_of(STARTED_MOUNT_PATH).exists():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the member did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(START_POLL_S)

    def answer(self, question: str, *arguments: str) -> str:
        return str(getattr(self, question)(*arguments))

    def close(self) -> None:
        self._monitor.stop(0.0)
        self._running.join()
        self._monitor.close()

    def output_folder(self) -> Path:
        return self._sandbox.path_of(OUTPUT_MOUNT_PATH)

    def socket(self) -> Path:
        return self._sandbox.socket_path

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


def run_member(monitor: RayMonitor, root: StorageRoot) -> None:
    plan = build_plan(JobSpec.model_validate(TEMPLATE), local_vm(), storage_uri=root.uri)
    machine = ray.get_runtime_context().get_node_id()
    facts = MemberFacts(member=0, num_members=1, node_rank=0, address="127.0.0.1", port=0, ray_node_id=machine)
    with MemberLog(LogWriter(root, JOB_ID, 0), "node 0", is_local=root.is_local) as log:
        shell = CommandShell(plan, root, JOB_ID, 0, CLAIM, secrets={}, log=log, note=tell)
        Member(monitor, root, JOB_ID, describe=lambda: facts, group="bench", shell=shell, log=log, note=tell).run()
        shell.close_launcher()


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def read_status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
