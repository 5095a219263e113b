"""A function job's member in this process: the function, its session, its log, and what counts as a hang.

Long because everything that a function does in its process, in the SDK's words or in Ray's, is tried in one way.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train.v2._internal.execution import train_fn_utils
from simulated_cluster import FakeCluster, SlowRoot
from simulated_nodes import ObservedMonitor, event_texts, facts_of, in_thread, wait_for

import periflow_ray as pf
from periflow_ray.errors import StorageError
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.runtime.function_jobs import shell as shell_module
from periflow_ray.runtime.function_jobs.rank_log import RankLog, ThreadKeeper
from periflow_ray.runtime.function_jobs.ray_words import RaySetup
from periflow_ray.runtime.function_jobs.shell import FunctionShell
from periflow_ray.runtime.member import log as log_module
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.member import Member, Outcome
from periflow_ray.runtime.monitor.contract import EndAttempt
from periflow_ray.sdk.session import use_channel_factory
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import store_workspace
from periflow_ray.submit.modules import find_script_dir
from periflow_ray.submit.workspace import scan_workspace

HANG_TIMEOUT_S = 0.2
# Of the monitor, which looks every 10 ms: far longer than a rank may stand still.
NUM_LOOKS = 200
VARIABLES = ("PERIFLOW_ENABLED", "PERIFLOW_STORAGE", "PERIFLOW_STORAGE_CREDENTIAL", "PERIFLOW_ATTEMPT")


@pytest.fixture(autouse=True)
def own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a function's shell does to its process is undone."""
    for name in (*VARIABLES, "CKPT_DIR", "PROCESSED_ITERS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sandbox_module, "_base_dir", lambda: tmp_path / "sandboxes")
    yield
    use_channel_factory(None)


@pytest.fixture
def as_ray_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's functions answer in this process, as in a worker, and are as before when the test is over."""
    monkeypatch.setattr(train_fn_utils, "_train_fn_utils", None)


class LogRoot(StorageRoot):
    """A storage root that takes a log's lines only from this flush on."""

    num_flushes = 0

    def __init__(self, uri: str, first_good_flush: int) -> None:
        super().__init__(uri)
        self._first_good_flush = first_good_flush

    def create_exclusive(self, key: str, content: bytes) -> bool:
        self.num_flushes += 1
        if self.num_flushes < self._first_good_flush:
            raise StorageError("503 SlowDown")
        return super().create_exclusive(key, content)


def run_function(
    monitor: ObservedMonitor,
    root: StorageRoot,
    function: Callable[[], object] = print,
    log_root: StorageRoot | None = None,
    environment: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    load: Callable[[], tuple[Callable[..., object], None]] | None = None,
) -> tuple[Outcome, FunctionShell]:
    """The only rank's part in job 1."""
    kept = MemberLog(LogWriter(log_root or root, 1, 0, 0), "rank 0", is_local=True, secrets=secrets)
    with RankLog(kept.mask, [ThreadKeeper(kept)]) as log:
        shell = FunctionShell(
            load or (lambda: (function, None)),
            root,
            1,
            rank=0,
            local_rank=0,
            node_rank=0,
            claim="claim",
            storage_credential=None,
            log=log,
            environment=environment or {},
            ray=RaySetup("job"),
            has_modules=load is not None,
        )
        member = Member(
            monitor.client,
            root,
            1,
            describe=lambda: facts_of(0, 1),
            group="group-1",
            shell=shell,
            log=log,
            note=lambda text: None,
        )
        return member.run(), shell


def train_and_save(num_steps: int) -> None:
    """A checkpoint after each step."""
    pf.init(num_steps)
    for step in range(1, num_steps + 1):
        with pf.train_step():
            pf.metric({"loss": 0.5})
        Path(os.environ["CKPT_DIR"], "state.txt").write_text(str(step))
        pf.upload_checkpoint()


async def wait_for_looks(cluster: FakeCluster, num_looks: int) -> None:
    wanted = cluster.num_looks + num_looks
    await wait_for(lambda: cluster.num_looks >= wanted)


def test_a_function_that_returns_is_a_success_with_all_it_saved_and_printed(run_monitor, root):
    def function() -> str:
        train_and_save(3)
        print("done", end="")
        return "result"

    async def scenario(monitor: ObservedMonitor) -> None:
        outcome, shell = await in_thread(lambda: run_function(monitor, root, function))
        assert outcome == Outcome("end")
        assert (shell.result, shell.error) == ("result", None)

    run_monitor(scenario, num_members=1)
    assert [manifest.step for manifest in list_committed(root, 1)] == [1, 2, 3]
    assert [line.text for line in read_logs(root, 1) if line.node_rank == 0] == ["done"]


def test_a_function_that_raises_is_told_with_its_line(run_monitor, root):
    def function() -> None:
        raise ValueError("the loss is nan")

    async def scenario(monitor: ObservedMonitor) -> None:
        outcome, shell = await in_thread(lambda: run_function(monitor, root, function))
        assert outcome.failure is not None
        assert outcome.failure.summary == "the function raised ValueError: the loss is nan"
        assert outcome.failure.last_lines[-1].strip() == 'raise ValueError("the loss is nan")'
        assert isinstance(shell.error, ValueError)

    run_monitor(scenario, num_members=1)
    (record,) = read_attempts(root, 1)
    assert record.cause == "failure"


def test_a_function_finds_its_variables_but_not_in_place_of_the_job_s(run_monitor, root, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "of the machine")

    def function() -> tuple[str, str]:
        return os.environ["WANDB_PROJECT"], os.environ["CKPT_DIR"]

    async def scenario(monitor: ObservedMonitor) -> None:
        environment = {"WANDB_PROJECT": "vision", "CKPT_DIR": "/mine"}
        _, shell = await in_thread(lambda: run_function(monitor, root, function, environment=environment))
        assert shell.result == ("vision", str(shell.output_dir))

    run_monitor(scenario, num_members=1)


def test_a_secret_is_hidden_in_the_log_in_what_ray_gets_and_in_the_diagnosis(run_monitor, root, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "")

    def function() -> None:
        print("key", os.environ["WANDB_API_KEY"])
        raise ValueError(f"{os.environ['WANDB_API_KEY']} is refused")

    async def scenario(monitor: ObservedMonitor) -> None:
        environment, secrets = {"WANDB_API_KEY": "hunter2"}, ["hunter2"]
        outcome, _ = await in_thread(
            lambda: run_function(monitor, root, function, environment=environment, secrets=secrets)
        )
        assert outcome.failure is not None
        assert outcome.failure.summary == "the function raised ValueError: *** is refused"

    run_monitor(scenario, num_members=1)
    lines = [line.text for line in read_logs(root, 1) if line.node_rank == 0]
    assert (lines[0], lines[-1]) == ("key ***", "ValueError: *** is refused")
    shown = capfd.readouterr()
    assert "key ***" in shown.out
    assert "hunter2" not in f"{shown.out} {shown.err} {event_texts(root)} {read_attempts(root, 1)}"


# Each waits for the commit of a checkpoint whose manifest the storage does not take.


@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_uploads_that_take_longer_than_the_hang_timeout_are_no_hang(
    run_monitor, slow_root: SlowRoot, cluster: FakeCluster, num_steps
):
    """The last one, when the function has returned; or the third, whose call waits for those before."""

    async def scenario(monitor: ObservedMonitor) -> None:
        slow_root.hold("manifest.json")
        running = asyncio.create_task(
            in_thread(lambda: run_function(monitor, slow_root, lambda: train_and_save(num_steps)))
        )
        await wait_for(slow_root.is_held.is_set)
        await wait_for_looks(cluster, NUM_LOOKS)
        assert not running.done()
        slow_root.let_go()
        outcome, _ = await running
        assert outcome == Outcome("end")

    run_monitor(scenario, num_members=1, hang_timeout_s=HANG_TIMEOUT_S, root=slow_root)
    assert [manifest.step for manifest in list_committed(slow_root, 1)] == list(range(1, num_steps + 1))
    assert "attempt_failed" not in [kind for kind, _ in event_texts(slow_root)]


def test_a_function_that_stands_still_is_a_hang(run_monitor, root, monkeypatch, cluster: FakeCluster):
    """Else the test above would say nothing: here the time runs out."""
    has_ended = threading.Event()

    def function() -> None:
        pf.init(100)
        for _ in range(3):
            with pf.train_step():
                pass
        has_ended.wait()

    # Ray ends the function's process; here it has to return.
    monkeypatch.setattr(shell_module, "leave_group", lambda reason: has_ended.set())

    async def scenario(monitor: ObservedMonitor) -> None:
        running = asyncio.create_task(in_thread(lambda: run_function(monitor, root, function)))
        assert isinstance((await monitor.next_orders(1, 0))[-1], EndAttempt)
        await running

    run_monitor(scenario, num_members=1, hang_timeout_s=HANG_TIMEOUT_S)
    assert [record.cause for record in read_attempts(root, 1)] == ["hang"]


@pytest.mark.parametrize("first_good_flush", [3, 10**9])
def test_a_log_that_the_storage_does_not_take_fails_no_function(run_monitor, root, monkeypatch, first_good_flush):
    monkeypatch.setattr(log_module, "LOCAL_FLUSH_INTERVAL_S", 0.01)
    log_root = LogRoot(root.uri, first_good_flush)

    async def scenario(monitor: ObservedMonitor) -> None:
        def function() -> str:
            print("first")
            while log_root.num_flushes < 2:
                pass
            print("second")
            return "result"

        outcome, shell = await in_thread(lambda: run_function(monitor, root, function, log_root))
        assert (outcome, shell.result) == (Outcome("end"), "result")

    run_monitor(scenario, num_members=1)
    lines = [line.text for line in read_logs(root, 1) if line.node_rank == 0]
    assert lines == (["first", "second"] if first_good_flush == 3 else [])


def save_by_report(directory: Path, content: str, **options: Any) -> None:
    """Report a checkpoint of one file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.pt").write_text(content)
    ray.train.report({"content": len(content)}, checkpoint=ray.train.Checkpoint(str(directory)), **options)


def test_rays_reports_are_steps_metrics_and_checkpoints(run_monitor, root, tmp_path, as_ray_worker):
    def function() -> None:
        assert ray.train.get_checkpoint() is None
        ray.train.report({"loss": 1.0, "eval": {"loss": 2.0}})
        save_by_report(tmp_path / "reported", "one")
        # Committed when the report has returned.
        assert Path(ray.train.get_checkpoint().path, "model.pt").read_text() == "one"
        save_by_report(tmp_path / "gone", "three", checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC)
        assert (tmp_path / "reported").exists()
        assert not (tmp_path / "gone").exists()
        assert ray.train.get_context().get_experiment_name() == "job"

    async def scenario(monitor: ObservedMonitor) -> None:
        outcome, shell = await in_thread(lambda: run_function(monitor, root, function))
        assert (outcome, shell.error) == (Outcome("end"), None)
        assert shell.reported_metrics == {"content": 5}

    run_monitor(scenario, num_members=1)
    assert [(one.step, dict(one.metrics)["content"]) for one in list_committed(root, 1)] == [(2, 3), (3, 5)]
    values = [(metric.step, dict(metric.values)) for metric in read_metrics(root, 1)]
    assert values == [(1, {"loss": 1.0, "eval/loss": 2.0}), (2, {"content": 3}), (3, {"content": 5})]


def test_a_function_that_counts_its_steps_reports_at_the_current_one(run_monitor, root, tmp_path, as_ray_worker):
    def function() -> None:
        pf.init(4)
        for _ in range(4):
            with pf.train_step():
                pass
        save_by_report(tmp_path / "reported", "four")

    async def scenario(monitor: ObservedMonitor) -> None:
        outcome, shell = await in_thread(lambda: run_function(monitor, root, function))
        assert (outcome, shell.error) == (Outcome("end"), None)

    run_monitor(scenario, num_members=1)
    assert [one.step for one in list_committed(root, 1)] == [4]
    assert [(metric.step, dict(metric.values)) for metric in read_metrics(root, 1)] == [(4, {"content": 4})]


@pytest.mark.parametrize("options", [{"checkpoint_upload_fn": print}, {"validation": True}])
def test_an_option_of_a_report_that_a_job_has_no_use_for_is_refused(
    run_monitor, root, tmp_path, as_ray_worker, options
):
    async def scenario(monitor: ObservedMonitor) -> None:
        def save() -> None:
            save_by_report(tmp_path / "reported", "one", **options)

        outcome, _ = await in_thread(lambda: run_function(monitor, root, save))
        assert outcome.failure is not None
        assert f"ray.train.report({next(iter(options))}=...)" in outcome.failure.summary

    run_monitor(scenario, num_members=1)


def test_the_job_s_modules_are_there_when_the_function_is_loaded(run_monitor, root, tmp_path, monkeypatch):
    folder = tmp_path / "my script"
    (folder / "package_of_the_job").mkdir(parents=True)
    (folder / "package_of_the_job" / "__init__.py").write_text("NAME = 'beside'\n")
    store_workspace(root, 1, scan_workspace(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load() -> tuple[Callable[..., object], None]:
        module = importlib.import_module("package_of_the_job")
        return (lambda: module.NAME), None

    async def scenario(monitor: ObservedMonitor) -> None:
        outcome, shell = await in_thread(lambda: run_function(monitor, root, load=load))
        assert (outcome, shell.result) == (Outcome("end"), "beside")

    run_monitor(scenario, num_members=1)
    sys.modules.pop("package_of_the_job")


@pytest.mark.parametrize(
    ("script", "folder"),
    [("script/main.py", "script"), (None, "."), ("python/bin/jupyter", "."), ("no-such-folder/main.py", ".")],
)
def test_the_script_s_folder_is_where_python_looks_first(tmp_path, monkeypatch, script, folder):
    (tmp_path / "script").mkdir()
    (tmp_path / "python" / "bin").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = find_script_dir(None if script is None else str(tmp_path / script), str(tmp_path / "python"))
    assert found == tmp_path / folder
