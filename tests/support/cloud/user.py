"""What a user of periflow-ray does in a box, and what the provider then says that there is."""

from __future__ import annotations

import json
from typing import Any

from support.cloud.box import Box
from support.hash_chain import HashChain
from support.workbench import wait_until

ROOT = "s3://periflow/root"
# A worker is launched, set up, and in the job after this.
RUNNING_TIMEOUT_S = 240.0
_STORAGE = ("--storage", ROOT)
_CHAIN_DIR = "../chain"


def run(box: Box, *argv: str, timeout_s: float = 330.0) -> str:
    """What a command says, which succeeds."""
    done = box.run(*argv, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_refusal(box: Box, *argv: str) -> str:
    """Why a command fails, in its own words."""
    done = box.run(*argv, timeout_s=240)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


def make_bucket(box: Box) -> None:
    """Make the bucket of the storage root."""
    run(box, "python", "-c", "import boto3; boto3.client('s3', 'us-east-1').create_bucket(Bucket='periflow')")


def ask_json(box: Box, *argv: str) -> Any:
    """What a command of periflow-ray says to programs."""
    return json.loads(run(box, "periflow-ray", *argv, *_STORAGE, "-o", "json"))


def up(name: str, *vm_names: str) -> tuple[str, ...]:
    """The command that makes a cluster."""
    vms = [word for vm_name in vm_names for word in ("--vm", vm_name)]
    return (
        *("periflow-ray", "cluster", "up", "--name", name, *vms, "--max-nodes", "4", "--yes"),
        *("--ssh-from", "10.77.0.0/24", *_STORAGE),
    )


def start_and_kill(box: Box, command: tuple[str, ...], phase: str) -> None:
    """Begin a command, and kill it as soon as it says that it is in this phase."""
    process = box.start(*command)
    assert process.stdout is not None
    said = ""
    while phase not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.kill()
    process.wait()
    process.stdout.close()


def find_machines(box: Box, node_type: str) -> list[dict[str, Any]]:
    """Those of a Ray node type that cost money."""
    return [
        machine
        for machine in box.ask("machines")
        if machine["state"] in ("pending", "running") and machine["tags"].get("ray-user-node-type") == node_type
    ]


def submit_chain(box: Box, chain: HashChain, vm: str, *options: str) -> tuple[str, ...]:
    """The command that submits a job of two machines; ``vm`` stands in its template."""
    box.write("chain/app/main.py", chain.script())
    box.write("chain/pf-template.yml", chain.template(vm))
    return (
        *("periflow-ray", "submit", "-f", f"{_CHAIN_DIR}/pf-template.yml", "-d", f"{_CHAIN_DIR}/app"),
        *(*_STORAGE, *options),
    )


def wait_for_status(box: Box, job_id: int, status: str) -> None:
    """Wait until a job is ``running`` or has ended as it should."""
    wait_until(
        lambda: ask_json(box, "job", "view", str(job_id))["status"] == status,
        f"job {job_id}: {status}",
        RUNNING_TIMEOUT_S,
    )


def read_events(box: Box, job_id: int) -> list[str]:
    """What the events of a job say."""
    return [event["text"] for event in ask_json(box, "job", "events", str(job_id))]


def assert_exact(box: Box, job_id: int, chain: HashChain) -> None:
    """Wait for a job's success, and hold its last checkpoint against an undisturbed run."""
    run(box, "periflow-ray", "job", "log", str(job_id), "-f", *_STORAGE)
    assert ask_json(box, "job", "view", str(job_id))["status"] == "success"
    checkpoint, directory = f"{job_id}/step-{chain.num_steps:08d}", f"../final-{job_id}"
    run(box, "periflow-ray", "checkpoint", "download", checkpoint, *_STORAGE, "--dest", directory)
    states = [json.loads(run(box, "cat", f"{directory}/state-{rank}.json")) for rank in (0, 1)]
    assert [(step, state) for step, state, _ in states] == [
        (chain.num_steps, chain.final_state(rank)) for rank in (0, 1)
    ]
