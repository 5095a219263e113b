"""The processes of a command job on one node: one command, or one per device, with the environment it expects.

Long because both places where a command may run are here, this machine and a container, and all that differs there.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import JobFailedError
from periflow_ray.jobs.stop_times import COMMAND_GRACE_S, HURRIED_TEARDOWN_S
from periflow_ray.plan import JobPlan, NodeFacts, drop_internal_variables, rewrite_paths
from periflow_ray.private_files import create_private
from periflow_ray.processes import Command, CommandResult
from periflow_ray.runtime.command_jobs import warm_launcher
from periflow_ray.runtime.command_jobs.launchers import LAUNCHERS, Run
from periflow_ray.runtime.command_jobs.launchers.torchrun_stop import StopFilter
from periflow_ray.runtime.command_jobs.setup_once import build_command, rewrite_setup
from periflow_ray.runtime.diagnosis import Failure, describe_exit, diagnose
from periflow_ray.runtime.environments.command_python import CommandPython
from periflow_ray.runtime.environments.container import SHIM_DIR, Container, Start, explain_refusal, inherited
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.monitor.contract import AttemptStart
from periflow_ray.runtime.user_environment import is_of_launcher
from periflow_ray.sdk import wire

# Where the attempt is lost, or saved as a whole, nothing of what a rank still does is kept; and everybody waits for it.
LOST_GRACE_S = 0.5
NUM_KEPT_LINES = 400
# Linux takes 131,072 bytes.
_MAX_ARGUMENT_BYTES = 120_000
# What a Ray worker's environment says of itself must not leak into the user's processes.
_DROPPED_PREFIXES = ("RAY_", "TORCHELASTIC_")
_DROPPED_NAMES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
)
# Ray gives a worker its GPUs, of which the shell knows nothing, and a trial of a sweep as many threads as it has CPUs.
_DEVICES = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


def describe_large_environment(env: Mapping[str, str]) -> str:
    """Says which of the variables are so large that no program can be started with them, without their values."""
    sizes = {name: len(name) + len(value.encode("utf-8", "surrogateescape")) for name, value in env.items()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    return (
        f"the command cannot be started, because its variables are too large: {sum(sizes.values()):,} bytes together, "
        f"the largest ones {', '.join(f'{name} ({num_bytes:,})' for name, num_bytes in largest)}. Linux takes 131,072 "
        "of each, and about 2,000,000 of all. Put large texts into files of the workspace."
    )


def inherit_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What a command inherits of an environment that is Ray's, or that of the shell which submitted the job."""
    return {
        name: value
        for name, value in drop_internal_variables(environ).items()
        if name not in _DROPPED_NAMES and not name.startswith(_DROPPED_PREFIXES) and not is_of_launcher(name)
    }


class NodeCommands:
    """Starts the plan's command as often as the launch mode says; ``wait`` for the end, or ``stop`` it.

    Args:
        environ: what the commands inherit: this process's variables, or those of the shell that submitted the job.
        python: the Python that they find, where they run on this machine as it is.
        container: what they run in; None for this machine as it is.
    """

    def __init__(
        self,
        plan: JobPlan,
        sandbox: Sandbox,
        log: MemberLog,
        secrets: Mapping[str, str],
        environ: Mapping[str, str],
        node_rank: int,
        start: AttemptStart,
        python: CommandPython,
        container: Container | None = None,
    ) -> None:
        self._plan = plan
        self._sandbox = sandbox
        self._log = log
        self._secrets = secrets
        self._environ = environ
        self._python = python
        self._container = container
        self._launcher = LAUNCHERS[plan.launch_mode]
        self._node = NodeFacts(
            num_nodes=start.num_members,
            node_rank=node_rank,
            master_addr=start.master_addr,
            master_port=start.master_port,
            attempt=start.attempt,
            processed_iters=start.checkpoint.step if start.checkpoint else 0,
            output_checkpoint_dir=plan.output_checkpoint_dir,
        )
        self.left: list[str] = []
        """Processes that could not be ended, once ``wait`` has returned: ``1234 (sudo sleep 1000)``."""
        self._bash_text = self._shorten(self._build_command(), "command")
        runs = self._launcher.runs(plan, self._node)
        self._num_runs = len(runs)
        self._first_run = runs[0]
        self._teardown: Command | None = None
        self._running = [self._start(run) for run in runs]

    def wait(self) -> Failure | None:
        """Wait for every command; the first that fails ends the others, and its diagnosis is returned."""
        failures: list[Failure] = []

        def wait_for(running: _Running) -> None:
            result = running.command.wait()
            running.output.close()
            self.left += result.left
            failure = None if result.is_success else self._diagnose(running, result)
            if failure is not None:
                failures.append(failure)
                self.stop(LOST_GRACE_S)

        threads = [threading.Thread(target=wait_for, args=(running,), name="command-wait") for running in self._running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures[0] if failures else None

    def stop(self, grace_s: float = COMMAND_GRACE_S) -> None:
        """Ask every command to end, within the grace time; ``wait`` returns then."""
        for running in self._running:
            running.output.begin()
            running.command.stop(grace_s)
        if self._teardown is not None:
            self._teardown.stop(HURRIED_TEARDOWN_S)

    def tear_down(self, timeout_s: float) -> str | None:
        """Run the template's teardown, after ``wait``.

        Args:
            timeout_s: how long it may take.
        Returns:
            What went wrong, for the user; None if nothing did.
        """
        if self._plan.teardown is None:
            return None
        text = self._shorten(self._rewrite(self._plan.teardown), "teardown")

        def write(line: str) -> None:
            self._log.write(line)

        command = self._command(self._build_start(self._first_run, text), write)
        is_late = threading.Event()

        def end_it() -> None:
            is_late.set()
            command.stop(0.0)

        timer = threading.Timer(timeout_s, end_it)
        try:
            command.start()
            self._teardown = command
            timer.start()
            result = command.wait()
        finally:
            timer.cancel()
        self.left += result.left
        if result.is_success:
            return None
        how = describe_exit(result.exit_code, result.signal)
        how = f"it was ended after {timeout_s:.0f} s" if is_late.is_set() else how
        return f"the teardown on node {self._node.node_rank} failed: {how}. The job ends as it would have without it"

    def explain(self, summary: str) -> Failure:
        """A failure that no exit code tells, with the lines and the hint that belong to it."""
        lines = [line for running in self._running for line in running.lines]
        return dataclasses.replace(
            diagnose(
                node_rank=self._node.node_rank,
                exit_code=None,
                signal_number=None,
                report=self._launcher.read_failure(lines),
                time_unix_s=time.time(),
            ),
            summary=summary,
        )

    def _start(self, run: Run) -> _Running:
        lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)
        output = StopFilter(lambda text: lines.append(self._log.write(text)))
        start = self._build_start(run, self._bash_text)
        command = self._command(start, output.take)
        try:
            command.start()
        except OSError as err:
            if err.errno != errno.E2BIG:
                raise
            raise JobFailedError(describe_large_environment(start.env)) from err
        return _Running(command, run.rank, lines, output, start.memory_mark)

    def _command(self, start: Start, on_line: Callable[[str], None]) -> Command:
        return Command(
            start.argv,
            env=start.env,
            working_dir=self._working_dir,
            grace_s=COMMAND_GRACE_S,
            on_line=on_line,
            mask=self._log.mask,
            finish=start.finish,
        )

    @property
    def _working_dir(self) -> Path:
        return self._sandbox.path_of(self._plan.workspace_mount_path)

    def _build_start(self, run: Run, text: str) -> Start:
        return self._start_here(run, text) if self._container is None else self._start_in(self._container, run, text)

    def _start_here(self, run: Run, text: str) -> Start:
        built = self._inherit()
        given = self._job_variables(run.environment)
        if self._num_runs > 1:
            # As torchrun does for several processes: each of them would start a thread for every processor.
            built.setdefault(_THREADS, "1")
        python_path = [str(SHIM_DIR), given.get("PYTHONPATH", built.get("PYTHONPATH", ""))]
        env = {
            **self._python.apply(built, given),
            warm_launcher.VARIABLE: str(self._sandbox.launcher_path),
            "PYTHONPATH": os.pathsep.join(part for part in python_path if part),
        }
        return Start(["bash", "-c", text], env, [])

    def _start_in(self, container: Container, run: Run, text: str) -> Start:
        built = self._inherit()
        given = inherited(built)
        if self._num_runs > 1:
            given.setdefault(_THREADS, "1")
        return container.start(
            text,
            {**given, **self._python.variables, **self._job_variables(run.environment)},
            client_environment=built,
            working_dir=self._plan.workspace_mount_path,
            python_path=self._python.package_dirs,
            program_path=self._python.program_dirs,
        )

    def _build_command(self) -> str:
        text = None
        # Of a container nothing that a setup has installed is there in the next one.
        if self._plan.install_setup is not None and self._container is None:
            setup = rewrite_setup(self._plan.install_setup, self._rewrite)
            text = build_command(setup, self._sandbox.python_dir, self._working_dir)
        return self._rewrite(self._plan.command) if text is None else text

    def _shorten(self, text: str, name: str) -> str:
        """A text for bash, or what makes bash read it where it is too long for an argument."""
        if len(text.encode()) <= _MAX_ARGUMENT_BYTES:
            return text
        path = self._sandbox.directory / name
        path.unlink(missing_ok=True)
        create_private(path, text.encode())
        return f". {shlex.quote(str(path))}"

    def _diagnose(self, running: _Running, result: CommandResult) -> Failure:
        failure = diagnose(
            node_rank=self._node.node_rank,
            exit_code=result.exit_code,
            signal_number=result.signal,
            report=self._launcher.read_failure(list(running.lines)),
            time_unix_s=time.time(),
            peak_memory_bytes=result.peak_memory_bytes,
            node_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            is_container_full=running.memory_mark is not None and running.memory_mark.exists(),
            image_name=None if self._container is None else self._container.image.name,
            rank=running.rank,
        )
        refusal = None if self._container is None else explain_refusal(result.exit_code, list(running.lines))
        return failure if refusal is None else dataclasses.replace(failure, hint=refusal)

    def _inherit(self) -> dict[str, str]:
        """What is left of the surrounding variables."""
        built = inherit_variables(self._environ)
        if _DEVICES in os.environ:
            built[_DEVICES] = os.environ[_DEVICES]
        if _THREADS in os.environ:
            built.setdefault(_THREADS, os.environ[_THREADS])
        return built

    def _job_variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """What the job itself sets, wherever its command runs."""
        # A template's env_var is the same for all processes, too.
        rewritten = {name: self._rewrite(value) for name, value in env.items() if not is_of_launcher(name)}
        marker_name, marker_value = self._sandbox.marker
        return {
            **rewritten,
            **self._secrets,
            marker_name: marker_value,
            "PERIFLOW_SESSION": str(self._sandbox.socket_path),
            wire.VERSION_VARIABLE: str(wire.PROTOCOL_VERSION),
            # For periflow_ray.dataset(): the root that this job is in.
            "PERIFLOW_STORAGE": self._plan.storage_uri,
            "PERIFLOW_STORAGE_CREDENTIAL": self._plan.storage_credential or "",
            # Lines must reach the log when they are printed, not when a buffer is full.
            "PYTHONUNBUFFERED": rewritten.get("PYTHONUNBUFFERED", "1"),
        }

    def _rewrite(self, text: str) -> str:
        # In a container the mount paths are real.
        if self._container is not None:
            return text
        return rewrite_paths(text, self._plan.mount_paths, str(self._sandbox.root_dir))


@dataclass(frozen=True)
class _Running:
    command: Command
    rank: int | None
    lines: deque[str]
    output: StopFilter
    memory_mark: Path | None
