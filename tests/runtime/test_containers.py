"""A job's command in a real container: what it sees, how it ends, and what is left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.container_images import Podman, serve_registry
from support.links import NO_LINKS

from periflow_ray.errors import JobFailedError
from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.plan import build_plan, find_vm
from periflow_ray.processes import keeper
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.environments.container import label_of
from periflow_ray.runtime.environments.engine import Login, find_engine
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.member.stacks import dump_stacks
from periflow_ray.runtime.monitor.contract import AttemptStart, EndAttempt
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.usefixtures("sandboxes")


@pytest.fixture
def sandboxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sandboxes of the test's own, for whose sockets the path of ``tmp_path`` may be too long."""
    with tempfile.TemporaryDirectory(prefix="pf-", dir="/tmp") as directory:
        monkeypatch.setattr(sandbox_module, "_base_dir", lambda: Path(directory) / "sandboxes")
        yield


@pytest.fixture(scope="session")
def served_registry(served_podman: tuple[Podman, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    podman, image = served_podman
    with serve_registry(tmp_path_factory.mktemp("registry"), image, podman) as address:
        yield address


@pytest.fixture
def registry(podman: Podman, served_registry: str) -> str:
    """The address of a private registry, which lets in "someone" with the password "right"."""
    return served_registry


@dataclass
class NodeRun:
    """A node's command while it runs, and what became of it."""

    root: StorageRoot
    log: MemberLog
    shell: CommandShell
    notes: list[str]
    failures: list[Failure | None] = field(default_factory=list)

    def start(self, attempt: int = 1) -> None:
        self.shell.prepare(attempt)
        self.shell.start(AttemptStart(attempt, 1), NO_LINKS)
        self._thread = threading.Thread(target=lambda: self.failures.append(self.shell.wait() or self.shell.check()))
        self._thread.start()

    def finish(self) -> Failure | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.shell.close()
        self.shell.close_launcher()
        return self.failures[-1]

    def lines(self) -> list[str]:
        self.log.flush()
        return [line.text for line in read_logs(self.root, 1)]


@pytest.fixture
def make_run(root: StorageRoot) -> Any:
    def make(command: str, image: str | None, login: Login | None = None, **docker: object) -> NodeRun:
        requires = bool(docker.pop("require_image", False))
        spec = JobSpec.model_validate(
            {
                "vm": "local",
                "num_devices": 1,
                "job_setting": {"type": "custom", "docker": {"image": image, "command": command, **docker}},
                **({"checkpoint": {"output_checkpoint_dir": "/workspace/ckpt"}} if "CKPT_DIR" in command else {}),
            }
        )
        plan = build_plan(spec, find_vm("local"), storage_uri=root.uri, require_image=requires)
        claim_job_id(root)
        notes: list[str] = []
        log = MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True)
        shell = CommandShell(
            plan, root, 1, 0, read_claim(root, 1), {"MY_SECRET": "of the job"}, log, notes.append, login=login
        )
        return NodeRun(root, log, shell, notes)

    return make


SEES = """
cd /workspace
echo "$(pwd) $FROM_IMAGE $CKPT_DIR $MY_SECRET [$TEMPLATE] $(id -u)"
python - <<'END'
import importlib.util, os, sys
print("sdk", importlib.util.find_spec("periflow_ray") is not None, importlib.util.find_spec("ray"))
print("path", sys.path[1:3] == [os.environ["PYTHONPATH"].split(":")[0], "/opt/of-image"])
import periflow_ray as pf
pf.init(total_train_steps=2)
with pf.train_step():
    pass
open(os.environ["CKPT_DIR"] + "/a", "w").write("1")
os.chmod(os.environ["CKPT_DIR"] + "/a", 0o600)
with pf.train_step():
    pass
END
"""


def test_a_command_sees_the_image_the_job_and_the_sdk(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run(SEES, image, env_var={"TEMPLATE": "two\nlines /workspace", "PATH": os.defpath})
    run.start()
    assert run.finish() is None, run.lines()
    assert run.lines() == [
        "/workspace yes /workspace/ckpt of the job [two",
        "lines /workspace] 0",
        "sdk True None",
        "path True",
    ]
    assert run.notes[0].startswith(f"runs in the image {image} (sha256:")
    assert run.shell.output_dir is not None
    assert (run.shell.output_dir / "a").read_text() == "1"


TIDIES_UP = """
python - <<'END' &
import signal, sys, time
def tidy(*_):
    print("tidies up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, tidy)
print("ready", flush=True)
time.sleep(1000)
END
setsid sh -c 'trap "" TERM; while :; do sleep 1; done' &
wait; wait; echo "never comes"; sleep 1000
"""


def test_a_stop_lets_the_script_tidy_up_and_leaves_nothing(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    run = make_run(TIDIES_UP, image)
    run.start()
    wait_until(lambda: "ready" in run.lines())
    run.shell.end(EndAttempt("stop"))
    assert run.finish() is not None
    assert "tidies up" in run.lines()
    assert find_marked(run) == []


@pytest.mark.parametrize("victim", ["client", "first process", "keeper", "container"])
def test_whatever_is_killed_ends_the_attempt_and_the_next_one_runs(
    podman: Podman,
    image: str,
    make_run: Callable[..., NodeRun],
    wait_until: Callable[[Callable[[], bool]], None],
    victim: str,
) -> None:
    run = make_run("[ $PERIFLOW_ATTEMPT = 1 ] || exit 0; echo ready; sleep 1000 & sleep 1000", image)
    run.start()
    wait_until(lambda: "ready" in run.lines())
    [container] = podman.list_containers()
    pid = int(podman.run("inspect", "--format", "{{.State.Pid}}", container))
    match victim:
        case "first process":
            os.kill(pid, signal.SIGKILL)
        case "container":
            podman.run("kill", container)
        case "client":
            os.kill(find_process("run", "--name"), signal.SIGKILL)
        case "keeper":
            os.kill(find_process("keeper.py"), signal.SIGKILL)
    failure = run.finish()
    assert failure is not None
    assert find_marked(run) == []
    assert podman.list_containers() == []
    run.start(attempt=2)
    assert run.finish() is None


def test_a_container_that_a_killed_agent_left_is_ended_by_the_next_attempt(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run("true", image)
    run.shell.prepare(1)
    label = label_of(Sandbox(run.root.uri, 1, 0).directory)
    podman.run("run", "--detach", "--network=host", "--label", label, image, "sleep", "1000")
    run.start(attempt=2)
    assert run.finish() is None
    assert "ended a container, left over from an earlier attempt on this node" in run.notes


@pytest.mark.parametrize(
    ("command", "exit_code", "hint"),
    [
        ("exit 3", 3, None),
        ("kill -SEGV $$", 139, None),
        ("no-such-program", 127, "the program 'no-such-program' is not installed"),
        ("exec python -c 'a = bytearray(1 << 30)'", 137, "memory of its container was full"),
    ],
    ids=["exit", "signal", "missing", "memory"],
)
def test_the_end_of_a_command_is_told_as_without_a_container(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], command: str, exit_code: int, hint: str | None
) -> None:
    run = make_run(command, image, options=["--memory=128m"])
    run.start()
    failure = run.finish()
    assert failure is not None
    assert failure.exit_code == exit_code
    assert (failure.hint or "").find(hint or "") >= 0


def test_processes_of_a_container_are_known_as_this_machine_counts_them(
    podman: Podman, image: str, make_run: Callable[..., NodeRun], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    script = "import periflow_ray as pf, time; pf.init(total_train_steps=9); print('ready'); time.sleep(1000)"
    run = make_run(f'python -c "{script}"', image)
    run.start()
    wait_until(lambda: "ready" in run.lines())
    pids = run.shell.pids()
    assert "python" in Path(f"/proc/{pids[0]}/cmdline").read_text()
    assert any("MainThread" in line for line in dump_stacks(pids[0]))
    os.kill(pids[0], signal.SIGKILL)
    assert run.finish() is not None


def test_what_another_user_in_the_container_wrote_can_be_read_and_removed(
    podman: Podman, image: str, make_run: Callable[..., NodeRun]
) -> None:
    run = make_run(
        "chmod 777 /workspace $CKPT_DIR; exec setpriv --reuid 65534 --regid 65534 --clear-groups "
        "sh -c 'umask 077; echo text >$CKPT_DIR/a; mkdir /workspace/of-nobody; id -u'",
        image,
    )
    run.start()
    run.finish()
    assert run.lines() == ["65534"]
    sandbox = Sandbox(run.root.uri, 1, 0)
    assert sandbox.path_of("/workspace/ckpt/a").read_text() == "text\n"
    sandbox.remove()
    assert not sandbox.directory.exists()


@pytest.mark.parametrize("is_required", [False, True])
def test_without_an_engine_the_image_is_not_used_or_the_job_fails(
    make_run: Callable[..., NodeRun], monkeypatch: pytest.MonkeyPatch, is_required: bool
) -> None:
    monkeypatch.setenv("PERIFLOW_CONTAINER_ENGINE", "no-such-engine")
    run = make_run("echo here", "an/image:1", require_image=is_required)
    if is_required:
        with pytest.raises(JobFailedError, match="'an/image:1' is not used on node 0: no-such-engine is not installed"):
            run.start()
        return
    run.start()
    run.finish()
    assert run.lines() == ["here"]
    assert run.notes[0] == (
        "the image 'an/image:1' is not used on node 0: no-such-engine is not installed. The command runs in the "
        "cluster's Python environment"
    )


@pytest.mark.parametrize(
    ("password", "tag", "message"),
    [
        ("right", "1", None),
        ("wrong", "1", "the registry refuses access. Name a credential"),
        (None, "1", "the registry refuses access. Name a credential"),
        ("right", "2", "there is no such image or tag in the registry"),
    ],
    ids=["right", "wrong", "none", "missing-tag"],
)
def test_an_image_of_a_private_registry_is_fetched_by_its_credential(
    podman: Podman,
    image: str,
    make_run: Callable[..., NodeRun],
    registry: str,
    password: str | None,
    tag: str,
    message: str | None,
) -> None:
    login = None if password is None else Login("someone", password)
    run = make_run("echo $FROM_IMAGE", f"{registry}/private/image:{tag}", login=login)
    if message is not None:
        with pytest.raises(JobFailedError, match=message):
            run.start()
        run.shell.close()
    else:
        run.start()
        assert run.finish() is None
        assert run.lines() == ["yes"]
        podman.run("rmi", f"{registry}/private/image:{tag}")
    assert run.notes[0] == f"node 0 fetches the image '{registry}/private/image:{tag}' with podman"
    assert not list(Path("/dev/shm").glob("periflow-login-*"))


def test_the_password_of_a_registry_is_in_no_command_line(
    podman: Podman, image: str, registry: str, tmp_path: Path
) -> None:
    # The engine is a script that notes what it is started with.
    program = tmp_path / "podman"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/arguments\nenv >>{tmp_path}/arguments\nexec podman "$@"\n')
    program.chmod(0o755)
    engine = dataclasses.replace(find_engine(), program=str(program))
    engine.pull(f"{registry}/private/image:1", Login("someone", "right"), lambda line: None)
    podman.run("rmi", f"{registry}/private/image:1")
    assert " --authfile /dev/shm/periflow-login-" in (tmp_path / "arguments").read_text()
    assert "right" not in (tmp_path / "arguments").read_text()


def find_process(*words: str) -> int:
    """The one process below this one whose arguments have these words."""
    found = []
    for pid in keeper.find_descendants(os.getpid()):
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if all(any(argument.endswith(word) for argument in arguments) for word in words):
            found.append(pid)
    return found[0]


def find_marked(run: NodeRun) -> list[int]:
    """Processes of the run's sandbox that are still there."""
    name, value = Sandbox(run.root.uri, 1, 0).marker
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{name}={value}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found
