"""The shell of a command job's member: the command's processes on one node, and the SDK sessions of its ranks.

Long because all that a member asks of a command comes together here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from periflow_ray.jobs.stop_times import COMMAND_GRACE_S, HURRIED_TEARDOWN_S, TEARDOWN_TIMEOUT_S
from periflow_ray.plan import JobPlan, rewrite_paths, rewritten_mounts
from periflow_ray.private_files import make_private_directories
from periflow_ray.processes import end_leftovers
from periflow_ray.runtime.command_jobs import warm_launcher
from periflow_ray.runtime.command_jobs.data_mount import DatasetMount, mount_dataset
from periflow_ray.runtime.command_jobs.left_files import describe_left_files
from periflow_ray.runtime.command_jobs.node_commands import LOST_GRACE_S, NodeCommands, inherit_variables
from periflow_ray.runtime.command_jobs.session_server import SessionServer
from periflow_ray.runtime.command_jobs.warm_launcher import WarmLauncher
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.environments.command_python import CommandPython
from periflow_ray.runtime.environments.container import Container, inherited
from periflow_ray.runtime.environments.engine import NOT_STARTED, Login
from periflow_ray.runtime.environments.job_image import JobImage
from periflow_ray.runtime.environments.job_python import JobPython
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.open_watch import OpenWatch
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.member.shell import Links, Records
from periflow_ray.runtime.monitor.contract import AttemptStart, Departure, EndAttempt
from periflow_ray.sdk.beginning import BEGIN_ANEW_VARIABLE
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

TRUST_EXIT_CODE_VARIABLE = "PERIFLOW_TRUST_EXIT_CODE"


class CommandShell:
    """Prepares the sandbox, runs the command as child processes, and serves their sessions.

    Args:
        claim: the job's, by which its sandbox is known.
        note: takes a sentence that the user should read.
        environ: what the command inherits; default, or empty, this process's variables.
        login: for the image's registry.
    """

    brings_files = True
    restarts_in_place = True
    # One member a node: its ranks meet in the session server.
    meets_others = False

    def __init__(
        self,
        plan: JobPlan,
        root: StorageRoot,
        job_id: int,
        node_rank: int,
        claim: str,
        secrets: Mapping[str, str],
        log: MemberLog,
        note: Callable[[str], None],
        environ: Mapping[str, str] | None = None,
        login: Login | None = None,
    ) -> None:
        self._plan = plan
        self._root = root
        self._job_id = job_id
        self._node_rank = node_rank
        self._claim = claim
        self._secrets = secrets
        self._environ = environ or os.environ
        self._image = JobImage(plan, node_rank, login, note)
        self._container: Container | None = None
        self._log = log
        self._note = note
        self._dataset: DatasetMount | None = None
        self._server: SessionServer | None = None
        self._commands: NodeCommands | None = None
        self._is_ended = False
        self._warm: WarmLauncher | None = None
        self._has_warmed = False
        self._opens: OpenWatch | None = None
        self._job_python = JobPython(plan, root, job_id, node_rank, log, note)
        self._python = CommandPython()
        self.output_dir: Path | None = None
        self._find_sandbox()

    def prepare(self, attempt: int, tell: Callable[[str], None]) -> Path:
        self._image.end_leftovers(self._sandbox.directory)
        for leftover in end_leftovers(self._sandbox.marker):
            if leftover.is_left:
                self._leave_behind(leftover.description)
            else:
                self._note(f"ended process {leftover.description}, left over from an earlier attempt on this node")
        self._find_sandbox()
        self._has_warmed = False
        self._server, self._commands, self._is_ended = None, None, False
        self._sandbox.create(self._claim)
        self._sandbox.hold()
        if self._sandbox.unpack_workspace(
            self._root, self._job_id, self._plan.workspace_mount_path, self._plan.workspace_of
        ):
            self._tell_deleted("the workspace")
        for mount in self._plan.mounts:
            self._fill_mount(mount.kind, self._sandbox.path_of(mount.path))
        dataset = None if self._dataset is None else self._dataset.source
        container = self._container = self._image.open(self._sandbox, dataset, tell)
        if container is None:
            self._python = self._job_python.prepare(self._sandbox, self._variables(), tell)
        else:
            variables = {**inherited(inherit_variables(self._environ)), **self._plan.env, **self._secrets}
            self._python, self._container = self._job_python.prepare_in(container, self._sandbox, variables, tell)
        return self._sandbox.snapshots_dir

    def end_preparation(self) -> None:
        self._image.end_fetch()
        self._job_python.end_installation()

    def start(self, start: AttemptStart, links: Links) -> None:
        if self._node_rank == 0:
            self._tell_start(start)
        self._server = SessionServer(
            self._sandbox.socket_path,
            links.save,
            self._note,
            on_late=links.miss_save,
            resumed_step=0 if start.checkpoint is None else start.checkpoint.step,
        )
        self._server.start()
        if start.checkpoint is not None and self.output_dir and not self._plan.env.get(BEGIN_ANEW_VARIABLE):
            self._opens = OpenWatch(self.output_dir)
        # What is warm is this machine's Python.
        if self._plan.launch_mode == "node" and self._container is None:
            self._open_launcher()
        self._commands = NodeCommands(
            self._plan,
            self._sandbox,
            self._log,
            self._secrets,
            self._environ,
            self._node_rank,
            start,
            self._python,
            self._container,
        )

    def wait(self) -> Failure | None:
        assert self._commands is not None
        failure = self._commands.wait()
        if failure is not None and failure.exit_code == NOT_STARTED:
            self._image.look_again()
        problem = self._commands.tear_down(HURRIED_TEARDOWN_S if self._is_ended else TEARDOWN_TIMEOUT_S)
        if problem is not None:
            self._note(problem)
        for process in (*self._commands.left, *(self._warm.end_runs() if self._warm is not None else ())):
            self._leave_behind(process)
        self._job_python.record_installed()
        return failure

    def take_records(self) -> Records:
        records = Records({}) if self._server is None else self._server.take_records()
        if records.steps and self._warm is not None and not self._has_warmed:
            # Not before, because a start needs the processors for itself.
            self._has_warmed = True
            threading.Thread(target=self._warm.warm_up, name="warm-up", daemon=True).start()
        return records if self._opens is None else replace(records, has_read_checkpoint=self._opens.has_opened)

    def ask_steps(self, timeout_s: float) -> None:
        if self._server is not None:
            self._server.ask_steps(timeout_s)

    def announce(self, step: int, departure: Departure | None) -> None:
        if self._server is not None:
            self._server.announce(step)

    def pids(self) -> Mapping[int, int]:
        return {} if self._server is None else self._server.pids

    def end(self, order: EndAttempt) -> None:
        self._is_ended = True
        if self._commands is not None:
            # A user who stops a job lets its script tidy up.
            self._commands.stop(COMMAND_GRACE_S if order.cause in (None, "stop") else LOST_GRACE_S)

    def leave_group(self, reason: str) -> None:
        raise AssertionError("a command can be ended")

    def check(self) -> Failure | None:
        self._tell_left_files()
        if self._server is None:
            return None
        if self._server.has_had_session:
            return self._check_ends(self._server)
        imported = any(self._sandbox.directory.glob("imported-*"))
        if imported or self._plan.output_checkpoint_dir is not None:
            return Failure(
                self._node_rank,
                time.time(),
                summary="the command ended with exit code 0, but no process called pf.init(): nothing was tracked and "
                "no checkpoint was saved. Call pf.init(total_train_steps=...) in the script; for a command without the "
                "SDK leave 'checkpoint' out of the template",
            )
        return None

    def _check_ends(self, server: SessionServer) -> Failure | None:
        """A command's exit code is that of its last part alone, and only where nothing hides it."""
        assert self._commands is not None
        how = server.find_failed_rank()
        if how is None or self._plan.env.get(TRUST_EXIT_CODE_VARIABLE):
            return None
        return self._commands.explain(
            f"the command ended with exit code 0, but {how}. '| tee' without 'set -o pipefail', '; echo done', "
            f"'|| true' and '&' hide that. If the exit code is right all the same, set {TRUST_EXIT_CODE_VARIABLE}=1 in "
            "env_var"
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._opens is not None:
            self._opens.close()
            self._opens = None
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None
        self._image.close()
        self._job_python.close()
        self._sandbox.release()

    def close_launcher(self) -> None:
        """End what lasts from one attempt to the next."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def _open_launcher(self) -> None:
        path = self._sandbox.launcher_path
        if self._warm is None or self._warm.socket_path != path:
            self.close_launcher()
            # Of a member that was killed.
            end_leftovers((warm_launcher.MARKER, str(self._sandbox.directory)))
            # A job does without it where it cannot be, for example below a path that is too long for a socket.
            with contextlib.suppress(OSError):
                warm = WarmLauncher(path, str(self._sandbox.directory), lambda text: print(text, file=sys.stderr))
                self._warm = warm.start()

    def _variables(self) -> dict[str, str]:
        """What the command has in its environment, but for what depends on the attempt."""
        paths, root_dir = self._plan.mount_paths, str(self._sandbox.root_dir)
        given = {name: rewrite_paths(value, paths, root_dir) for name, value in self._plan.env.items()}
        return {**inherit_variables(self._environ), **given, **self._secrets}

    def _find_sandbox(self) -> None:
        self._sandbox = Sandbox(self._root.uri, self._job_id, self._node_rank)
        declared = self._plan.output_checkpoint_dir
        self.output_dir = None if declared is None else self._sandbox.path_of(declared)

    def _leave_behind(self, process: str) -> None:
        self._sandbox.abandon()
        self._note(
            f"process {process} on node {self._node_rank} cannot be ended, because it is another user's (sudo) or the "
            "kernel holds it (a network disk, a GPU). It is left behind with what it holds, such as memory; the job's "
            "next attempt on this node uses other directories. End it by hand."
        )

    def _fill_mount(self, kind: str, target: Path) -> None:
        data, checkpoint_input = self._plan.data, self._plan.checkpoint_input
        if kind == "data" and data is not None:
            self._dataset = mount_dataset(self._root, data, target, on_note=self._note)
            return
        make_private_directories(target)
        if kind != "checkpoint_input" or checkpoint_input is None:
            return

        def restore(is_again: bool) -> list[str]:
            manifest = checkpoints.find_checkpoint(self._root, checkpoint_input.id)
            checkpoints.restore(self._root, manifest, self._node_rank, target)
            return [file.path for file in manifest.files]

        # Once per node: a later attempt neither fetches it again nor needs it to be there still. Of these files the
        # command may have deleted or moved some itself.
        if self._sandbox.fill("input", target, restore, is_gone=lambda is_there: not any(is_there)):
            self._tell_deleted(f"checkpoint {checkpoint_input.id}")

    def _tell_deleted(self, what: str) -> None:
        self._note(
            f"files of {what} had been deleted on node {self._node_rank}, perhaps by what clears out "
            f"'{self._sandbox.job_dir.parent.parent}', and were fetched again"
        )

    def _tell_left_files(self) -> None:
        """By one node, because all do the same."""
        if self._node_rank != 0:
            return
        sandbox, plan = self._sandbox, self._plan
        workspace = sandbox.path_of(plan.workspace_mount_path)
        brought = {os.path.join(workspace, path) for path in sandbox.filled_with("workspace") or ()}
        kept = [sandbox.path_of(mount.path) for mount in plan.mounts if mount.kind != "workspace"]
        try:
            left = describe_left_files(sandbox.root_dir, brought, kept)
        except OSError:  # The command took the permission to look, or something of it goes on deleting.
            return
        if left is not None:
            self._note(
                "files that the command wrote outside checkpoint.output_checkpoint_dir are deleted with the job: "
                f"{left}. Only checkpoints, metrics and the log are kept"
            )

    def _tell_start(self, start: AttemptStart) -> None:
        if start.checkpoint is not None:
            self._note(f"resumes from checkpoint {start.checkpoint.checkpoint} at step {start.checkpoint.step}")
        if self._container is not None:
            engine, image = self._container.engine, self._container.image
            self._note(f"runs in the image {image.name} ({image.id[:19]}, {engine.name} {engine.version})")
            return
        rewritten = rewritten_mounts(self._plan.command, self._plan.mount_paths)
        if rewritten and start.attempt == 1:
            paths = ", ".join(f"{path} -> {self._sandbox.path_of(path)}" for path in rewritten)
            self._note(f"mount paths in the command are rewritten (here on node 0): {paths}")
