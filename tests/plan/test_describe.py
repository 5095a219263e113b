from __future__ import annotations

import json
from typing import Any

import pytest

from periflow_ray.plan import build_plan, describe_plan, find_vm, local_vm, plan_document
from periflow_ray.plan.masking import mask_address, mask_text
from periflow_ray.secret_mask import looks_secret
from periflow_ray.spec import JobSpec

TEMPLATE: dict[str, Any] = {
    "name": "cifar-job",
    "vm": "aws-80gb-h100-8g-us-east-1",
    "num_devices": 16,
    "job_setting": {
        "type": "custom",
        "docker": {
            "image": "friendliai/periflow:sdk",
            "command": "cd /workspace/cifar && WANDB_API_KEY=abc123 torchrun main.py --save /workspace/ckpt",
            "env_var": {"HF_TOKEN": "hf_clear", "CACHE": "/workspace/cache", "PROXY": "http://me:pw@proxy:8080"},
        },
        "resources": {"memory": "100GiB"},
    },
    "checkpoint": {"output_checkpoint_dir": "/workspace/ckpt"},
    "max_failures": 2,
    "hang_timeout": "1.5h",
}
LATER = "(set when the job starts)"
IMAGES_PYTHON = "the image's where that is used, else the cluster's; what the command installs is for this job alone"


def test_a_plan_for_a_cluster_in_rows() -> None:
    plan = build_plan(
        JobSpec.model_validate(TEMPLATE),
        find_vm("aws-80gb-h100-8g-us-east-1"),
        storage_uri="s3://bucket/jobs?region=us-east-1&secret_key=s3cr3t",
        workspace_dir_name="cifar",
        secret_names=["DB_LOGIN"],
    )
    assert describe_plan(plan) == [
        ("Name", "cifar-job"),
        ("Experiment", "-"),
        ("VM", "aws-80gb-h100-8g-us-east-1 (p5.48xlarge in us-east-1, 8 x H100 80 GiB)"),
        ("Nodes", "2 x 8 devices"),
        ("Devices", "16"),
        ("Elastic", "no: waits until it has all of its devices"),
        ("Per device", "1 GPU, 23.875 CPUs, 100 GiB memory"),
        ("Image", "friendliai/periflow:sdk (on nodes with Docker or Podman)"),
        ("Python", IMAGES_PYTHON),
        (
            "Command (once per node)",
            "cd /workspace/cifar && WANDB_API_KEY=*** torchrun main.py --save /workspace/ckpt",
        ),
        (
            "Mounts",
            "/workspace  workspace, as /workspace/cifar\n/workspace/ckpt  output checkpoints",
        ),
        (
            "Environment",
            "HF_TOKEN=***\nCACHE=/workspace/cache\nPROXY=http://***@proxy:8080\n"
            f"MASTER_ADDR={LATER}\nMASTER_PORT={LATER}\nWORLD_SIZE=16\nNODE_RANK={LATER}\nNUM_NODES=2\n"
            f"NPROC_PER_NODE=8\nPERIFLOW_ENABLED=1\nPERIFLOW_ATTEMPT={LATER}\nPROCESSED_ITERS={LATER}\nCKPT_DIR=/workspace/ckpt\nDB_LOGIN=***",
        ),
        ("Storage", "s3://bucket/jobs?region=us-east-1&secret_key=***"),
        ("Max failures", "2"),
        ("Hang timeout", "5400 s without a step on any rank"),
        ("Price per hour", "about $110.08 (AWS prices for Linux, SkyPilot catalogue v9 at 2c3d7ea, 2026)"),
    ]


def test_on_this_machine_mount_paths_appear_below_the_sandbox() -> None:
    setting = {"type": "custom", "launch_mode": "device", "docker": {"command": "python /workspace/job/main.py"}}
    template = {"vm": "local", "num_devices": 2, "job_setting": setting}
    plan = build_plan(JobSpec.model_validate(template), local_vm(), storage_uri="/data", workspace_dir_name="job")
    assert describe_plan(plan) == [
        ("Name", "-"),
        ("Experiment", "-"),
        ("VM", "local (each node is a stand-in on this machine; devices are CPU slots)"),
        ("Nodes", "2 x 1 device"),
        ("Devices", "2"),
        ("Elastic", "no: waits until it has all of its devices"),
        ("Per device", "1 CPU"),
        ("Image", "-: the command runs in the cluster's Python environment"),
        ("Python", "the cluster's; what the command installs is for this job alone"),
        ("Command (once per device)", "python <sandbox>/workspace/job/main.py"),
        ("Mounts", "<sandbox>/workspace  workspace, as <sandbox>/workspace/job"),
        (
            "Environment",
            f"MASTER_ADDR={LATER}\nMASTER_PORT={LATER}\nWORLD_SIZE=2\nNODE_RANK={LATER}\nNUM_NODES=2\n"
            f"NPROC_PER_NODE=1\nPERIFLOW_ENABLED=1\nPERIFLOW_ATTEMPT={LATER}\nPROCESSED_ITERS={LATER}\nRANK={LATER}\nLOCAL_RANK={LATER}\n"
            "LOCAL_WORLD_SIZE=1",
        ),
        ("Storage", "/data"),
        ("Max failures", "0"),
        ("Price per hour", "-"),
    ]


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({"keep_last": 3}, "the newest 3"),
        ({"keep_last": 1}, "the newest"),
        ({"keep_best": {"metric": "loss", "mode": "min"}}, "the newest and the one with the lowest 'loss'"),
        (
            {"keep_last": 2, "keep_best": {"metric": "acc", "mode": "max"}},
            "the newest 2 and the one with the highest 'acc'",
        ),
    ],
)
def test_which_checkpoints_are_kept_and_how_they_are_stored(rules: dict[str, Any], kept: str) -> None:
    template = {**TEMPLATE, "checkpoint": {"output_checkpoint_dir": "/workspace/ckpt", **rules}}
    plan = build_plan(
        JobSpec.model_validate(template),
        find_vm(TEMPLATE["vm"]),
        storage_uri="s3://bucket/jobs",
        storage_credential="team-s3",
        upload_bandwidth_bytes_per_s=52_428_800,
    )
    rows = describe_plan(plan)
    assert rows[rows.index(("Checkpoints kept", kept)) :][:3] == [
        ("Checkpoints kept", kept),
        ("Upload bandwidth", "at most 52.4288 MB/s per node"),
        ("Storage", "s3://bucket/jobs (credential 'team-s3')"),
    ]


@pytest.mark.parametrize(
    ("vm", "price"),
    [
        (
            "azure-16gb-v100-4g-eastus-spot",
            "$6.36 as spot prices were, at most $48.96, the price on demand "
            "(Azure prices for Linux, SkyPilot catalogue v6 at 098741e, 2026)",
        ),
        (
            "aws-16gb-v100-4g-us-east-1-spot",
            "$5.97 to $8.02 as spot prices were, at most $48.96, the price on demand "
            "(AWS prices for Linux, SkyPilot catalogue v9 at 2c3d7ea, 2026)",
        ),
        (
            "azure-24gb-a10-1g-westeurope-spot",
            "unknown for azure-24gb-a10-1g-westeurope-spot",
        ),
        ("azure-141gb-h200-8g-eastus2", "unknown for azure-141gb-h200-8g-eastus2"),
    ],
)
def test_a_price_that_is_not_known_is_not_made_up(vm: str, price: str) -> None:
    spec = JobSpec.model_validate(
        {"vm": vm, "num_devices": 16, "job_setting": {"type": "custom", "docker": {"command": "main.py"}}}
    )
    assert describe_plan(build_plan(spec, find_vm(vm), storage_uri="/data"))[-1] == ("Price per hour", price)


def test_the_document_is_the_plan_with_secrets_masked() -> None:
    plan = build_plan(
        JobSpec.model_validate(TEMPLATE),
        find_vm(TEMPLATE["vm"]),
        storage_uri="s3://bucket/jobs",
        secret_names=["DB_LOGIN"],
    )
    document = plan_document(plan)
    assert document == plan.model_dump(mode="json") | {
        "command": "cd /workspace/cifar && WANDB_API_KEY=*** torchrun main.py --save /workspace/ckpt",
        "env": {
            "HF_TOKEN": "***",
            "CACHE": "/workspace/cache",
            "PROXY": "http://***@proxy:8080",
            "DB_LOGIN": "***",
        },
    }
    assert not any(secret in json.dumps(document) for secret in ("hf_clear", "abc123", "me:pw"))
    assert plan.env["HF_TOKEN"] == "hf_clear"


def test_where_messages_are_posted_is_shown_without_the_key_in_its_path() -> None:
    hook = {"plugin": {"webhook": {"url": "https://hooks.example.com/services/hunter2"}}}
    plan = build_plan(JobSpec.model_validate(TEMPLATE | hook), find_vm(TEMPLATE["vm"]), storage_uri="/data")
    assert plan_document(plan)["plugin"]["webhook"]["url"] == "https://hooks.example.com/***"
    assert ("Plugins", "webhook") in describe_plan(plan)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://example.com", "https://example.com"),
        ("https://example.com:8443/", "https://example.com:8443/***"),
        ("http://example.com?key=k", "http://example.com/***"),
        ("https://me:pw@example.com/a/b", "https://example.com/***"),
    ],
)
def test_an_address_keeps_its_server_alone(url: str, masked: str) -> None:
    assert mask_address(url) == masked


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password", "ApiKey", "GCP_CREDENTIALS"])
def test_names_that_look_secret(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES"])
def test_names_that_do_not(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("export HF_TOKEN='a b'; python x.py", "export HF_TOKEN=***; python x.py"),
        ("main.py --api-key abc --hf_token=def --epochs 3", "main.py --api-key *** --hf_token=*** --epochs 3"),
        ("main.py --api-key $WANDB_API_KEY --tokenizer bert", "main.py --api-key $WANDB_API_KEY --tokenizer bert"),
        ('WANDB_API_KEY="$KEY" main.py', 'WANDB_API_KEY="$KEY" main.py'),
        ("git clone https://user:ghp_1@github.com/a/b", "git clone https://***@github.com/a/b"),
        ("s3://bucket/a?access_key=A&secret_key=B", "s3://bucket/a?access_key=***&secret_key=***"),
    ],
)
def test_secrets_inside_a_text_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked
