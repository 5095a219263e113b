from __future__ import annotations

import subprocess
from typing import Any

import pytest

from periflow_ray.errors import PlanError
from periflow_ray.plan import JobPlan, build_plan, find_vm, local_vm
from periflow_ray.spec import JobSpec

FOUR_GPUS = find_vm("azure-16gb-v100-4g-eastus")


def spec_of(*, num_devices: int = 4, command: Any = "python main.py", **sections: Any) -> JobSpec:
    job_setting = {"type": "custom", "docker": {"command": command}} | sections.pop("job_setting", {})
    return JobSpec.model_validate(
        {"vm": "local", "num_devices": num_devices, "job_setting": job_setting} | sections,
    )


def plan_of(spec: JobSpec, **options: Any) -> JobPlan:
    return build_plan(spec, options.pop("vm", FOUR_GPUS), storage_uri="file:///data", **options)


def test_the_price_is_for_all_nodes() -> None:
    plan = plan_of(spec_of(num_devices=8))
    assert (plan.num_nodes, plan.price_per_hour_usd) == (2, 24.48)


def test_a_part_of_a_vm_costs_the_whole_vm() -> None:
    assert plan_of(spec_of(num_devices=1)).price_per_hour_usd == 12.24


def test_a_device_of_a_cloud_vm_gets_its_share_of_the_vcpus_less_one() -> None:
    plan = plan_of(spec_of(num_devices=2))
    assert (plan.gpus_per_device, plan.cpus_per_device) == (1, 5.75)


def test_a_template_may_ask_for_other_resources() -> None:
    plan = plan_of(spec_of(job_setting={"resources": {"cpus": 2, "memory": "16GiB"}}))
    assert (plan.cpus_per_device, plan.memory_bytes_per_device) == (2.0, 16 * 2**30)


@pytest.mark.parametrize(
    ("resources", "key", "message"),
    [
        (
            {"cpus": 7},
            "cpus",
            "job_setting.resources.cpus is 7 for each of 4 devices, but vm 'azure-16gb-v100-4g-eastus' has 24 vCPUs. "
            "Use at most 6.",
        ),
        (
            {"memory": "200GiB"},
            "memory",
            "job_setting.resources.memory is 200 GiB for each of 4 devices, but vm 'azure-16gb-v100-4g-eastus' has "
            "448 GiB. Use at most 112GiB.",
        ),
    ],
)
def test_a_template_may_not_ask_for_more_than_the_vm_has(resources: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(spec_of(job_setting={"resources": resources}))
    assert (caught.value.key_path, str(caught.value)) == (("job_setting", "resources", key), message)


@pytest.mark.parametrize(
    ("num_devices", "num_local_cpus", "cpus_per_device"), [(2, 2, 1.0), (2, 16, 1.0), (8, 2, 0.25), (3, 2, 0.6666)]
)
def test_any_number_of_cpu_devices_fits_this_machine(
    num_devices: int, num_local_cpus: int, cpus_per_device: float
) -> None:
    plan = plan_of(spec_of(num_devices=num_devices), vm=local_vm(), num_local_cpus=num_local_cpus)
    assert (plan.num_nodes, plan.gpus_per_device, plan.cpus_per_device) == (num_devices, 0, cpus_per_device)


def test_a_template_for_a_big_vm_still_fits_this_machine() -> None:
    spec = spec_of(num_devices=2, job_setting={"resources": {"cpus": 12, "memory": "200GiB"}})
    plan = plan_of(spec, vm=local_vm(), num_local_cpus=4)
    assert (plan.cpus_per_device, plan.memory_bytes_per_device, plan.price_per_hour_usd) == (2.0, None, None)


def test_more_devices_than_the_gpus_of_this_machine_is_an_error() -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(spec_of(num_devices=8), vm=local_vm(num_gpus=4), num_local_gpus=4)
    assert caught.value.key_path == ("num_devices",)
    assert str(caught.value) == (
        "num_devices 8 is more than the 4 GPUs of this machine. Use at most 4, or run on a cluster."
    )


def test_the_command_line_wins_over_env_var_and_secrets_leave_the_plan() -> None:
    docker = {"command": "main.py", "env_var": {"A": "1", "B": "2", "HF_TOKEN": "clear"}}
    plan = plan_of(spec_of(job_setting={"docker": docker}), extra_env={"B": "3"}, secret_names=["HF_TOKEN", "HF_TOKEN"])
    assert (plan.env, plan.secret_names) == ({"A": "1", "B": "3"}, ("HF_TOKEN",))
    assert "clear" not in plan.model_dump_json()


@pytest.mark.parametrize(
    ("sections", "key_path", "message"),
    [
        (
            {"checkpoint": {"output_checkpoint_dir": "/workspace/"}},
            ("checkpoint", "output_checkpoint_dir"),
            "job_setting.workspace.mount_path and checkpoint.output_checkpoint_dir are both '/workspace'. "
            "Give each its own directory.",
        ),
        (
            {"checkpoint": {"output_checkpoint_dir": "/ckpt", "input": {"id": "c1", "mount_path": "/ckpt"}}},
            ("checkpoint", "input", "mount_path"),
            "checkpoint.output_checkpoint_dir and checkpoint.input.mount_path are both '/ckpt'. "
            "Give each its own directory.",
        ),
        (
            {"data": {"name": "d", "mount_path": "/data"}, "checkpoint": {"output_checkpoint_dir": "/data/ckpt"}},
            ("data", "mount_path"),
            "'/data/ckpt' is inside data.mount_path '/data', which is read-only. Give the dataset a directory of its "
            "own.",
        ),
        (
            {"data": {"name": "d", "mount_path": "/workspace"}},
            ("data", "mount_path"),
            "job_setting.workspace.mount_path and data.mount_path are both '/workspace'. Give each its own directory.",
        ),
    ],
)
def test_two_mounts_cannot_share_a_path(sections: dict[str, Any], key_path: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(spec_of(**sections))
    assert (caught.value.key_path, str(caught.value)) == (key_path, message)


@pytest.mark.parametrize(
    ("output_dir", "sections", "other"),
    [
        ("/workspace/code", {}, "'/workspace/code' (the workspace)"),
        ("/out", {"job_setting": {"workspace": {"mount_path": "/out/src"}}}, "'/out/src/code' (the workspace)"),
        ("/out", {"data": {"name": "d", "mount_path": "/out/data"}}, "'/out/data' (data.mount_path)"),
        ("/out", {"checkpoint": {"input": {"id": "c", "mount_path": "/out/in"}}}, "'/out/in' (checkpoint.input.mount"),
        ("/in/out", {"checkpoint": {"input": {"id": "c", "mount_path": "/in"}}}, "'/in' (checkpoint.input.mount_path"),
    ],
)
def test_the_output_directory_holds_nothing_else(output_dir: str, sections: dict[str, Any], other: str) -> None:
    sections.setdefault("checkpoint", {})["output_checkpoint_dir"] = output_dir
    with pytest.raises(PlanError) as caught:
        plan_of(spec_of(**sections), workspace_dir_name="code")
    assert caught.value.key_path == ("checkpoint", "output_checkpoint_dir")
    assert str(caught.value).startswith(f"output_checkpoint_dir '{output_dir}' and {other}")


@pytest.mark.parametrize("output_dir", ["/workspace/code/ckpt", "/workspace/ckpt", "/workspace/code-2", "/ckpt"])
def test_the_output_directory_may_be_in_the_workspace(output_dir: str) -> None:
    plan = plan_of(spec_of(checkpoint={"output_checkpoint_dir": output_dir}), workspace_dir_name="code")
    assert plan.output_checkpoint_dir == output_dir


def run_bash(command: Any) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", plan_of(spec_of(command=command)).command], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("setup", "run", "outcome"),
    [
        ("export A=1; cd /tmp", "echo $A $PWD", (0, "1 /tmp\n")),
        ("echo setup; false", "echo run", (1, "setup\n")),
        ("false\ntrue", "echo run\necho again", (0, "run\nagain\n")),
        ("false", "echo run\necho again", (1, "")),
        ("true # a comment", "echo run # another", (0, "run\n")),
        ("cat <<END\nhello\nEND", "cat <<END\nworld\nEND", (0, "hello\nworld\n")),
        ("echo a \\\n  b \\\n", "echo c \\\n  d", (0, "a b\nc d\n")),
        ("true", "exit 7", (7, "")),
    ],
)
def test_run_is_reached_only_if_setup_succeeded(setup: str, run: str, outcome: tuple[int, str]) -> None:
    assert run_bash({"setup": setup, "run": run}) == outcome


def test_a_command_of_one_part_is_left_as_it_is() -> None:
    assert plan_of(spec_of(command="cd x && \\\n  python main.py")).command == "cd x && \\\n  python main.py"
    assert plan_of(spec_of(command={"run": "python main.py"})).command == "python main.py"
