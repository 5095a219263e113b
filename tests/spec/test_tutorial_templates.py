"""The templates of the PeriFlow tutorials, in all their shapes, and what they ask for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from periflow_ray.spec import (
    CheckpointInput,
    CheckpointSpec,
    DataSpec,
    DistSpec,
    DockerSpec,
    ElasticSpec,
    JobSetting,
    JobSpec,
    KeepBest,
    PluginSpec,
    ResourcesSpec,
    SetupAndRun,
    SlackPlugin,
    WandbPlugin,
    WebhookPlugin,
    WorkspaceSpec,
    load_template,
)

TEMPLATES = Path(__file__).parent / "templates"
CIFAR_COMMAND = (
    "cd /workspace/cifar && torchrun --nnodes $NUM_NODES --node_rank $NODE_RANK --master_addr $MASTER_ADDR "
    "--master_port 6000 --nproc_per_node 4 main.py \\\n"
    "  --model resnet50 \\\n"
    "  --dataset cifar100 \\\n"
    "  --batch-size 256 \\\n"
    "  --log-interval 100 \\\n"
    "  --total-epochs 50 \\\n"
    "  --save-interval 100 \\\n"
    "  --test-interval 100 \\\n"
    "  --num-dataloader-workers 4 \\\n"
    "  --data-path /workspace/data \\\n"
    "  --save /workspace/ckpt \\\n"
    "  --load /workspace/ckpt"
)


def load(name: str) -> JobSpec:
    path = TEMPLATES / name
    return load_template(path.read_bytes(), source=path.name).spec


def cifar_spec(command: str) -> JobSpec:
    return JobSpec(
        experiment="computer-vision",
        name="cifar-job",
        vm="azure-16gb-v100-4g-eastus-spot",
        num_devices=8,
        job_setting=JobSetting(
            type="custom",
            docker=DockerSpec(image="friendliai/periflow:sdk", command=command),
            workspace=WorkspaceSpec(mount_path="/workspace"),
        ),
        checkpoint=CheckpointSpec(output_checkpoint_dir="/workspace/ckpt"),
        data=DataSpec(name="my-cifar-100", mount_path="/workspace/data"),
    )


def test_the_autoencoder_tutorial_asks_for_one_device_without_a_dataset() -> None:
    assert load("autoencoder.yml") == JobSpec(
        experiment="mnist-autoencoder",
        name="autoencoder-job",
        vm="azure-16gb-v100-1g-eastus-spot",
        num_devices=1,
        job_setting=JobSetting(
            type="custom",
            docker=DockerSpec(
                image="friendliai/periflow:sdk",
                command="cd /workspace/pth-lightning && pip install pytorch-lightning && python main.py \\\n"
                "  --checkpoint-dir /workspace/ckpt \\\n"
                "  --num-epochs 10",
            ),
            workspace=WorkspaceSpec(mount_path="/workspace"),
        ),
        checkpoint=CheckpointSpec(output_checkpoint_dir="/workspace/ckpt"),
    )


def test_the_cifar_tutorial_asks_for_eight_devices_and_a_dataset() -> None:
    assert load("cifar.yml") == cifar_spec(CIFAR_COMMAND)


def test_the_cifar_tutorial_also_takes_the_number_of_processes_from_the_environment() -> None:
    command = CIFAR_COMMAND.replace("--nproc_per_node 4", "--nproc_per_node $NPROC_PER_NODE")

    assert load("cifar_nproc_variable.yml") == cifar_spec(command)


def test_a_command_may_have_a_setup_and_its_environment_is_text() -> None:
    spec = load("setup_and_run.yml")

    assert spec == JobSpec(
        experiment=None,
        name=None,
        vm="aws-16gb-v100-8g-us-east-2",
        num_devices=16,
        job_setting=JobSetting(
            type="custom",
            docker=DockerSpec(
                image="registry.example.com/team/trainer:1.4",
                credential_id="8d1f7c1e-docker",
                command=SetupAndRun(
                    setup="cd /workspace/cifar\npip install -r requirements.txt",
                    run="cd /workspace/cifar && torchrun --nnodes $NUM_NODES --node_rank $NODE_RANK "
                    "--nproc_per_node $NPROC_PER_NODE main.py \\\n--model resnet50 \\\n--save /workspace/ckpt",
                ),
                env_var={
                    "NCCL_DEBUG": "INFO",
                    "OMP_NUM_THREADS": "4",
                    "TOKENIZERS_PARALLELISM": "false",
                    "CUDA_VERSION": "11.10",
                },
            ),
        ),
        checkpoint=CheckpointSpec(
            output_checkpoint_dir="/workspace/ckpt",
            input=CheckpointInput(id="52a9e2f4", mount_path="/workspace/input"),
        ),
    )
    assert spec.job_setting.workspace.mount_path == "/workspace"


def test_a_job_may_post_its_messages_to_a_webhook() -> None:
    plugin = PluginSpec.model_validate({"webhook": {"url": " https://hooks.example.com:8443/s?k=1 "}})
    assert plugin == PluginSpec(webhook=WebhookPlugin(url="https://hooks.example.com:8443/s?k=1"))
    plugin = PluginSpec.model_validate({"webhook": {"url": None, "credential_id": "hook"}})
    assert plugin == PluginSpec(webhook=WebhookPlugin(credential_id="hook"))


def test_a_job_may_use_a_huggingface_dataset_parallelism_degrees_and_plugins() -> None:
    spec = load("plugins_and_dist.yml")

    assert spec == JobSpec(
        name="gpt-finetune",
        vm="azure-40gb-a100-8g-westus2",
        num_devices=16,
        job_setting=JobSetting(
            type="custom",
            docker=DockerSpec(image="friendliai/periflow:sdk", command="cd /workspace/gpt && bash train.sh"),
        ),
        checkpoint=CheckpointSpec(output_checkpoint_dir="/workspace/ckpt"),
        data=DataSpec(name="huggingface:wikitext", mount_path="/workspace/data"),
        dist=DistSpec(dp_degree=4, pp_degree=2, mp_degree=2),
        plugin=PluginSpec(
            slack=SlackPlugin(channel="training", credential_id="0f3c-slack"),
            wandb=WandbPlugin(credential_id="77ab-wandb"),
        ),
    )
    assert spec.data is not None
    assert (spec.data.is_huggingface, spec.data.huggingface_name) == (True, "wikitext")


def test_our_own_additions_are_launch_mode_resources_checkpoints_to_keep_and_what_to_do_about_failures() -> None:
    spec = load("own_additions.yml")

    assert spec == JobSpec(
        vm="local",
        num_devices=2,
        max_failures=3,
        hang_timeout="10m",
        elastic=ElasticSpec(min_devices=1),
        job_setting=JobSetting(
            type="custom",
            docker=DockerSpec(command="python main.py --num-epochs 2"),
            launch_mode="device",
            resources=ResourcesSpec(cpus=0.5, memory="1.5GiB"),
        ),
        checkpoint=CheckpointSpec(
            output_checkpoint_dir="/workspace/ckpt",
            keep_last=3,
            keep_best=KeepBest(metric="accuracy", mode="max"),
        ),
    )
    assert spec.job_setting.resources is not None
    assert spec.job_setting.resources.memory_bytes == 3 * 2**29
    assert spec.hang_timeout_s == 600


@pytest.mark.parametrize(("template", "program"), [("cifar.yml", "torchrun"), ("autoencoder.yml", "python")])
def test_a_tutorials_folded_command_runs_as_one_shell_line(template: str, program: str) -> None:
    command = load(template).job_setting.docker.command
    assert isinstance(command, str)
    script = f"cd() {{ :; }}; pip() {{ :; }}; {program}() {{ printf '%s|' \"$@\"; }}\n{command}"

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env={"NUM_NODES": "2"})

    arguments = done.stdout.split("|")[:-1]
    assert [argument for argument in arguments if not argument or argument != argument.strip()] == []
    assert arguments[-2:] == command.split()[-2:]
    assert done.stderr == ""
