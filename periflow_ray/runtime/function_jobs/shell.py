"""The shell of a function job's member: the user's function in this process, with its SDK session."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from periflow_ray.runtime.diagnosis import NUM_SHOWN_LINES, Failure
from periflow_ray.runtime.function_jobs.call import call_with_config
from periflow_ray.runtime.function_jobs.channel import FunctionChannel
from periflow_ray.runtime.function_jobs.rank_log import RankLog
from periflow_ray.runtime.function_jobs.ray_words import RaySetup, RayWords
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.runtime.member.shell import Links, Records
from periflow_ray.runtime.monitor.contract import AttemptStart, Departure, EndAttempt
from periflow_ray.runtime.ray_private import answer_train_calls
from periflow_ray.runtime.ray_train.group_policy import leave_group
from periflow_ray.sdk.session import use_channel_factory
from periflow_ray.store.read_only import remove_tree
from periflow_ray.store.root import StorageRoot

OUTPUT_MOUNT_PATH = "/ckpt"
MODULES_MOUNT_PATH = "/modules"
# A rank that died makes the others fail at once; Ray Train sees the death itself within this time.
LOSS_DETECTION_S = 1.0


class FunctionShell:
    """Runs the user's function as one rank.

    The first rank of a node makes its directories, restores and uploads; they have the same path on every node, because
    rank 0 tells the others where to write, as Lightning does.

    Args:
        load: gives the function, and the config that it gets.
        claim: the job's, by which its sandbox is known.
        log: takes each line that the function prints.
        environment: variables that the function finds; they may be secrets, which the log hides.
        ray: what its calls of ``ray.train`` depend on.
        has_modules: whether the job brings the modules that lie beside its script.
    """

    restarts_in_place = False
    meets_others = True

    def __init__(
        self,
        load: Callable[[], tuple[Callable[..., Any], dict[str, Any] | None]],
        root: StorageRoot,
        job_id: int,
        *,
        rank: int,
        local_rank: int,
        node_rank: int,
        claim: str,
        storage_credential: str | None,
        log: RankLog,
        environment: Mapping[str, str],
        ray: RaySetup,
        has_modules: bool = False,
    ) -> None:
        self._load = load
        self._root = root
        self._job_id = job_id
        self._rank = rank
        self._local_rank = local_rank
        self._node_rank = node_rank
        self._claim = claim
        self._storage_credential = storage_credential
        self._log = log
        self._environment = environment
        self._ray = ray
        self._has_modules = has_modules
        self._sandbox = Sandbox(root.uri, job_id, 0)
        self._reported_dir = self._sandbox.directory / "reported" / str(node_rank)
        self._channel: FunctionChannel | None = None
        self._words: RayWords | None = None
        self._num_members = 1
        self.brings_files = local_rank == 0
        self.output_dir: Path | None = self._sandbox.path_of(OUTPUT_MOUNT_PATH)
        self.result: Any = None
        """What the function returned."""
        self.error: BaseException | None = None
        """What the function raised."""

    def prepare(self, attempt: int, tell: Callable[[str], None]) -> Path:
        if self.brings_files:
            self._sandbox.create(self._claim)
            self._sandbox.hold()
            remove_tree(self._reported_dir)
            if self._has_modules:
                # Anew, because a resumed job may have other ones.
                self._sandbox.forget_workspace(MODULES_MOUNT_PATH)
                self._sandbox.unpack_workspace(self._root, self._job_id, MODULES_MOUNT_PATH)
        return self._sandbox.snapshots_dir

    def end_preparation(self) -> None:
        raise AssertionError("a function cannot be ended from outside")

    def start(self, start: AttemptStart, links: Links) -> None:
        self._num_members = start.num_members
        self._sandbox.hold()
        if self._has_modules:
            # The archive has one folder, under the name that it has beside the script.
            sys.path[:0] = map(str, self._sandbox.path_of(MODULES_MOUNT_PATH).iterdir())
        os.environ.update(self._environment)
        os.environ["PERIFLOW_ENABLED"] = "1"
        os.environ["PERIFLOW_STORAGE"] = self._root.uri
        os.environ["PERIFLOW_STORAGE_CREDENTIAL"] = self._storage_credential or ""
        os.environ["CKPT_DIR"] = str(self.output_dir)
        os.environ["PERIFLOW_ATTEMPT"] = str(start.attempt)
        os.environ["PROCESSED_ITERS"] = str(start.checkpoint.step if start.checkpoint else 0)
        self._words = words = RayWords(
            self._ray,
            self._root,
            self._job_id,
            links,
            start.checkpoint,
            brings_files=self.brings_files,
            reported_dir=self._reported_dir,
            note=self._log.note,
        )
        answer_train_calls(words)
        self._channel = channel = FunctionChannel(self._rank, self._local_rank, words.save, links.miss_save)
        words.follow(channel)
        use_channel_factory(lambda local_log_name: channel)

    def wait(self) -> Failure | None:
        try:
            with self._log.copy_output():
                self.result = _call_and_trace(self._load)
            use_channel_factory(None)
        except BaseException as err:
            self.error = err
            failure = self._describe(err)
            use_channel_factory(None)
            if self._num_members > 1:
                time.sleep(LOSS_DETECTION_S)
            return failure
        return None

    def take_records(self) -> Records:
        return Records({}) if self._channel is None else self._channel.take_records()

    def ask_steps(self, timeout_s: float) -> None:
        if self._channel is not None:
            self._channel.ask_step()

    def announce(self, step: int, departure: Departure | None) -> None:
        if self._words is not None:
            self._words.announce(step, departure)
        if self._channel is not None:
            self._channel.announce(step)

    @property
    def reported_metrics(self) -> Mapping[str, Any] | None:
        """What the function last gave to ``ray.train.report``; see ``RayWords``."""
        return None if self._words is None else self._words.reported_metrics

    def pids(self) -> Mapping[int, int]:
        return {self._rank: os.getpid()}

    def end(self, order: EndAttempt) -> None:
        raise AssertionError("a function cannot be ended from outside")

    def leave_group(self, reason: str) -> None:
        leave_group(reason)

    def check(self) -> Failure | None:
        return None

    def close(self) -> None:
        self._sandbox.release()

    def _describe(self, error: BaseException) -> Failure:
        frames = traceback.extract_tb(error.__traceback__)
        is_in_function = len(frames) > 3 and frames[1].name == _call_and_trace.__name__
        # Past three frames of ours begins the user's code.
        lines = "".join(traceback.format_list(frames[3:])).rstrip().splitlines() if is_in_function else []
        summary = f"the function raised {type(error).__name__}: {error}" if is_in_function else str(error)
        return Failure(
            node_rank=self._node_rank,
            rank=self._rank,
            time_unix_s=time.time(),
            last_lines=tuple(self._log.mask.apply(line) for line in lines[-NUM_SHOWN_LINES:]),
            summary=self._log.mask.apply(summary),
        )


def _call_and_trace(load: Callable[[], tuple[Callable[..., Any], dict[str, Any] | None]]) -> Any:
    try:
        return call_with_config(*load())
    except Exception:
        traceback.print_exc()
        raise
