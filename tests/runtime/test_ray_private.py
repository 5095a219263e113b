"""What this project relies on in Ray's private modules, one test for each name in ``runtime/ray_private.py``.

Long because it has one test for each symbol.
"""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.ray_constants as ray_constants
import ray.train
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from periflow_ray.runtime import ray_private

PACKAGE_DIR = Path(ray_private.__file__).parents[1]
NAMESPACE = b"ray-private-test"
TIMEOUT_S = 10.0
# Modules of Ray that its documentation does not promise to keep, beside those whose name begins with "_".
PRIVATE_MODULES = ("ray.core", "ray.experimental", "ray.train.v2", "ray.dashboard", "ray.autoscaler", "ray.serve")

WaitUntil = Callable[[Callable[[], bool]], None]


# No other file.


def find_private_uses(tree: ast.Module) -> Iterator[str]:
    """Imports of Ray's private modules, and attributes that begin with "_" of anything but the file's own classes."""
    imports_ray = False
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in (module + alias.name for alias in node.names):
                if name.split(".")[0] == "ray":
                    imports_ray = True
                    if f"{name}.".startswith(tuple(f"{private}." for private in PRIVATE_MODULES)) or "._" in name:
                        yield f"line {node.lineno}: import of {name}"
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            text = ast.unparse(node)
            if node.attr not in own and text != "os._exit":
                used.append(f"line {node.lineno}: {text}")
    if imports_ray:
        yield from used


def test_no_other_file_uses_what_is_rays_own():
    found = {}
    for path in sorted(PACKAGE_DIR.rglob("*.py")):
        uses = list(find_private_uses(ast.parse(path.read_text("utf-8"))))
        if path.parent.name == "lightning":
            # The private attributes there are Lightning's, not Ray's.
            uses = [use for use in uses if "import of" in use]
        if uses and path != Path(ray_private.__file__):
            found[str(path.relative_to(PACKAGE_DIR))] = uses
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import services",
        "import ray._private.ray_constants as constants",
        "from ray.core.generated import gcs_pb2",
        "from ray.experimental import internal_kv",
        "from ray.train.v2._internal.execution.context import get_train_context",
        "import ray\nray._private.state.state.get_draining_nodes()",
        "import ray\nclass Policy:\n    def ask(self):\n        self.scaling_config._resources_per_worker_not_none",
        "import ray\nclass Policy:\n    def ask(self):\n        self._maybe_send_resource_request()",
    ],
)
def test_the_rule_sees_what_it_is_there_for(line: str):
    assert list(find_private_uses(ast.parse(line)))


def test_the_rule_leaves_a_class_its_own_attributes():
    source = "import ray\nclass Own:\n    def _b(self):\n        self._a = 1\n        self._b(self._a)"
    assert list(find_private_uses(ast.parse(source))) == []


def test_importing_it_imports_no_ray():
    program = "import sys, periflow_ray.runtime.ray_private; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Classes and functions, without a cluster.


def test_a_class_is_rays_own_and_an_unknown_name_is_an_error():
    for name in ray_private._MODULE_BY_CLASS:
        assert isinstance(getattr(ray_private, name), type)
    with pytest.raises(AttributeError, match="ElasticScalingPolicy"):
        ray_private.ElasticScalingPolicy  # noqa: B018


def test_azures_template_has_what_a_vm_is_made_of_and_is_waited_for():
    types = {resource["type"] for resource in ray_private.read_azure_vm_template()["resources"]}
    assert {
        "Microsoft.Compute/virtualMachines",
        "Microsoft.Network/networkInterfaces",
        "Microsoft.Network/publicIpAddresses",
    } <= types
    assert ray_private.read_node_start_wait_s() > 60
    assert callable(ray_private.AzureNodeProvider._create_node)


def test_a_worker_whose_process_died_is_known_by_its_actors_error():
    died = ray.exceptions.RayActorError(preempted=True)
    failed = ValueError("the loss is not finite")
    assert ray_private.find_cause(WorkerHealthCheckFailedError("health check", died)) is died
    assert ray_private.find_cause(failed) is failed


def test_ray_says_of_a_dead_worker_whether_its_machine_was_announced_to_go():
    wrap = WorkerHealthCheckFailedError
    assert ray_private.is_preempted(wrap("health check", ray.exceptions.RayActorError(preempted=True)))
    assert not ray_private.is_preempted(wrap("health check", ray.exceptions.RayActorError()))
    assert not ray_private.is_preempted(ValueError("the loss is not finite"))


def test_a_run_of_unknown_resources_asks_for_a_cpu_or_a_gpu_per_worker():
    assert ray_private.resources_per_worker(ray.train.ScalingConfig(num_workers=2)) == {"CPU": 1}
    assert ray_private.resources_per_worker(ray.train.ScalingConfig(num_workers=2, use_gpu=True)) == {"GPU": 1}
    given = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5})
    assert ray_private.resources_per_worker(given) == {"CPU": 0.5}


def test_rays_own_failure_policy_tries_again_what_ray_train_could_not_start():
    policy = ray_private.DefaultFailurePolicy(ray.train.FailureConfig(max_failures=0, controller_failure_limit=1))
    error = ray.train.ControllerError(TimeoutError("no room"))
    assert policy.make_decision(error) == ray_private.FailureDecision.RAISE
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    error = ray.train.ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))
    assert policy.make_decision(error) == ray_private.FailureDecision.RETRY


def test_callbacks_of_a_trainer_can_be_left_out():
    class Trainer(ray_private.TrainerHooks, ray_private.DataParallelTrainer):  # type: ignore[misc]
        left_out_callbacks = (ray_private.DatasetsCallback, ray_private.PlacementGroupCleanerCallback)

    default = {type(callback) for callback in ray_private.DataParallelTrainer(print)._create_default_callbacks()}
    kept = {type(callback) for callback in Trainer(print)._create_default_callbacks()}
    assert default - kept == set(Trainer.left_out_callbacks)
    assert kept < default


def test_a_callback_may_come_before_those_of_a_trainer():
    class First(ray_private.WorkerGroupCallback):  # type: ignore[misc]
        pass

    class Trainer(ray_private.TrainerHooks, ray_private.DataParallelTrainer):  # type: ignore[misc]
        first_callbacks = (First,)

    assert isinstance(Trainer(print)._create_default_callbacks()[0], First)
    assert hasattr(First, "after_worker_group_start")


def test_the_gcs_address_is_that_of_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.4:6379")
    assert ray_private.find_gcs_address() == "10.0.0.4:6379"


# With a cluster.


@dataclass(frozen=True)
class Cluster:
    gcs_address: str
    node_id_hex: str


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray of this machine's loopback that this process has joined."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_private.keep_to_loopback()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        context = ray.get_runtime_context()
        yield Cluster(context.gcs_address, context.get_node_id())
    finally:
        ray.shutdown()
        ray_constants.ENABLE_RAY_CLUSTER = before


@pytest.mark.ray
def test_the_gcs_knows_the_node_and_it_is_on_loopback(cluster: Cluster):
    nodes = ray_private.read_nodes(ray_private.open_gcs(cluster.gcs_address), TIMEOUT_S)
    assert nodes == {cluster.node_id_hex: ray_private.NodeRecord("127.0.0.1", is_alive=True)}


@pytest.mark.ray
def test_a_cluster_says_whether_it_asks_for_a_token(cluster: Cluster):
    assert ray_private.asks_for_token(cluster.gcs_address, TIMEOUT_S)
    # Nobody is there.
    assert not ray_private.asks_for_token("127.0.0.1:1", TIMEOUT_S)


@pytest.mark.ray
def test_a_key_is_read_by_a_client_that_has_not_joined(cluster: Cluster):
    gcs = ray_private.open_gcs(cluster.gcs_address)
    ray_private.put_key(b"saving:1", b"one", NAMESPACE)
    ray_private.put_key(b"saving:2", b"two", NAMESPACE)
    assert gcs.internal_kv_get(b"saving:1", NAMESPACE, timeout=TIMEOUT_S) == b"one"
    assert sorted(gcs.internal_kv_keys(b"saving:", NAMESPACE, timeout=TIMEOUT_S)) == [b"saving:1", b"saving:2"]
    ray_private.delete_key(b"saving:1", NAMESPACE)
    assert gcs.internal_kv_get(b"saving:1", NAMESPACE, timeout=TIMEOUT_S) is None
    assert gcs.internal_kv_keys(b"saving:", NAMESPACE, timeout=TIMEOUT_S) == [b"saving:2"]


@pytest.mark.ray
def test_a_placement_group_says_who_made_it_and_what_it_holds_where(cluster: Cluster, wait_until: WaitUntil):
    @ray.remote(num_cpus=0)
    class Maker:
        def make(self) -> bytes:
            group = placement_group([{"CPU": 0.5}, {"CPU": 0.25}])
            ray.get(group.ready(), timeout=60)
            return group.id.binary()

        def whoami(self) -> str:
            return ray.get_runtime_context().get_actor_id()

    free_cpus = ray_private.read_free_resources()[cluster.node_id_hex]["CPU"]
    maker = Maker.remote()
    group_id, actor_id = ray.get([maker.make.remote(), maker.whoami.remote()])
    assert ray_private.read_placement_groups() == [
        ray_private.PlacementGroupFacts(
            group_id=group_id,
            creator_actor_id_hex=actor_id,
            creator_job_id_hex=ray.get_runtime_context().get_job_id(),
            is_pending=False,
            is_rescheduling=False,
            held={cluster.node_id_hex: {"CPU": 0.75}},
        )
    ]
    wait_until(lambda: ray_private.read_free_resources()[cluster.node_id_hex]["CPU"] == free_cpus - 0.75)

    remove_placement_group(PlacementGroup(ray.PlacementGroupID(group_id)))
    wait_until(lambda: ray_private.read_placement_groups() == [])


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a small run of Ray Train noted: its worker leaves its first group, and ends by itself in the second."""
    notes = tmp_path_factory.mktemp("notes")

    def note(name: str, text: str) -> None:
        with (notes / name).open("a") as file:
            file.write(f"{text}\n")

    class Failures(ray_private.FailurePolicy):  # type: ignore[misc]
        def make_decision(self, training_failed_error: ray.train.TrainingFailedError) -> Any:
            assert isinstance(training_failed_error, ray.train.WorkerGroupError)
            for rank, error in training_failed_error.worker_failures.items():
                note("failures", f"{rank}: {ray_private.find_cause(error)}")
            return ray_private.FailureDecision.RETRY

    class Sizes(ray_private.FixedScalingPolicy):  # type: ignore[misc]
        num_asked = 0

        def make_decision_for_non_running_worker_group(self) -> Any:
            ray_private.request_resources(self)
            self.num_asked += 1
            note("sizes", f"asked {self.num_asked}")
            if self.num_asked == 1:
                return ray_private.NoopDecision()
            return ray_private.ResizeDecision(1, ray_private.resources_per_worker(self.scaling_config))

    class Trainer(ray_private.TrainerHooks, ray_private.DataParallelTrainer):  # type: ignore[misc]
        left_out_callbacks = (ray_private.DatasetsCallback, ray_private.PlacementGroupCleanerCallback)

        def controller_options(self) -> dict[str, Any]:
            return {
                "failure_policy": Failures(self.run_config.failure_config),
                "scaling_policy": Sizes(self.scaling_config),
            }

        def take_controller(self, controller: Any) -> None:
            note("controller", type(controller).__name__)

    class Context(ray_private.DistributedTrainContext):
        def get_experiment_name(self) -> str:
            return "a name"

    class Answers(ray_private.DistributedTrainFnUtils):
        def get_checkpoint(self) -> ray.train.Checkpoint:
            return ray.train.Checkpoint("/checkpoints/step-00000040")

        def get_context(self) -> Context:
            return Context()

    def train(config: dict[str, Any]) -> None:
        is_first = not (notes / "workers").exists()
        note("workers", str(ray.train.get_context().get_world_size()))
        if is_first:
            ray_private.answer_train_calls(Answers())
            note("checkpoint", ray.train.get_checkpoint().path)
            note("name", ray.train.get_context().get_experiment_name())
            ray_private.set_preemption_info(ray.train.PreemptionInfo(1, {"machine": [0]}))
            note("ranks", str(ray.train.get_preemption_info().preempted_ranks))
            leave = threading.Thread(target=ray_private.end_worker, args=(ValueError("it leaves"), "it leaves"))
            leave.start()
            # Stands for a function that is stuck; Ray ends its process.
            threading.Event().wait()

    interval = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    os.environ[interval] = "0.2"
    try:
        Trainer(
            train,
            train_loop_config={},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
            run_config=ray.train.RunConfig(name="run", storage_path=str(notes / "storage")),
        ).fit()
    finally:
        del os.environ[interval]
    return {path.name: path.read_text().split("\n")[:-1] for path in notes.iterdir() if path.is_file()}


@pytest.mark.ray
def test_a_worker_leaves_while_its_function_runs_on_and_the_failure_policy_is_asked(run: dict[str, list[str]]):
    assert run["failures"] == ["0: it leaves"]
    assert run["workers"] == ["1", "1"]


@pytest.mark.ray
def test_a_worker_asks_for_ray_trains_answers_what_was_set(run: dict[str, list[str]]):
    assert (run["checkpoint"], run["name"], run["ranks"]) == (["/checkpoints/step-00000040"], ["a name"], ["[0]"])


@pytest.mark.ray
def test_the_scaling_policy_is_asked_again_after_it_did_nothing_and_for_each_group(run: dict[str, list[str]]):
    assert run["sizes"] == ["asked 1", "asked 2", "asked 3"]


@pytest.mark.ray
def test_the_trainer_hands_its_controller_over_in_the_main_thread(run: dict[str, list[str]]):
    assert run["controller"] == ["ActorHandle"]


# The last one: nothing can be placed on the node any more.
@pytest.mark.ray
def test_a_node_is_drained_with_a_deadline(cluster: Cluster, wait_until: WaitUntil):
    @ray.remote(num_cpus=0.1)
    class Work:
        """Without any work a drained node leaves Ray at once."""

        def is_running(self) -> bool:
            return True

    work = Work.remote()
    assert ray.get(work.is_running.remote())
    gcs = ray_private.open_gcs(cluster.gcs_address)
    assert ray_private.read_draining_nodes() == {}
    deadline_unix_ms = int((time.time() + 600) * 1000)
    answer = ray_private.drain_node(gcs, cluster.node_id_hex, "the cloud wants it back", deadline_unix_ms, TIMEOUT_S)
    assert answer == (True, "")
    wait_until(lambda: ray_private.read_draining_nodes() == {cluster.node_id_hex: deadline_unix_ms})


def test_ray_up_waits_as_long_between_two_looks_as_these_say():
    from ray.autoscaler._private import commands, updater

    assert "time.sleep(POLL_INTERVAL)" in inspect.getsource(commands.get_or_create_head_node)
    assert "time.sleep(READY_CHECK_INTERVAL)" in inspect.getsource(updater.NodeUpdater.wait_ready)
    assert (commands.POLL_INTERVAL, updater.READY_CHECK_INTERVAL) == (5, 5)


def test_a_refusal_of_a_provider_is_told_with_its_code_on_one_line():
    refusal = ray_private.NodeLaunchException("SkuNotAvailable", "None left.", None)
    assert str(refusal) == "Node Launch Exception (SkuNotAvailable): None left."
