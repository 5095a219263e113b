from __future__ import annotations

import json

import pytest

from periflow_ray.cli.template import TemplateAnswers, build_template_text
from periflow_ray.spec import build_json_schema, load_template

ANSWERS = [
    "cifar-job",
    "computer-vision",
    "azure-16gb-v100-4g-eastus-spot",
    "8",
    "cifar",
    "torchrun --nproc_per_node $NPROC_PER_NODE main.py",
    "/workspace",
    "/workspace/ckpt",
    "my-cifar-100",
    "/workspace/data",
]


@pytest.fixture(autouse=True)
def _folder_with_a_script(tmp_path, monkeypatch):
    (tmp_path / "cifar").mkdir()
    monkeypatch.chdir(tmp_path)


TEMPLATE = """\
# Name of the job; need not be unique
name: cifar-job

# Group of jobs that it belongs to
experiment: computer-vision

# Machine type; list all: periflow-ray vm list
vm: azure-16gb-v100-4g-eastus-spot

# Devices of the whole job, on all machines together
num_devices: 8

job_setting:
  type: custom
  docker:
    # Bash; MASTER_ADDR, MASTER_PORT, WORLD_SIZE, NODE_RANK, NUM_NODES and NPROC_PER_NODE are set
    command: |
      cd /workspace/cifar
      torchrun --nproc_per_node $NPROC_PER_NODE main.py
  # Where the workspace directory (submit -d DIR) appears, as <mount_path>/<name of DIR>
  workspace:
    mount_path: /workspace

# pf.upload_checkpoint() stores everything in this directory; a restarted job finds it filled again
checkpoint:
  output_checkpoint_dir: /workspace/ckpt

# Dataset to read; list all: periflow-ray datastore list
data:
  name: my-cifar-100
  mount_path: /workspace/data
"""


def test_answers_from_a_pipe_become_a_commented_template(run_cli, tmp_path):
    path = tmp_path / "new" / "pf-template.yml"
    result = run_cli("job", "template", "create", "-s", str(path), input="\n".join(ANSWERS) + "\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith(f"Wrote {path}. Run it: periflow-ray submit -f {path} -d cifar\n")
    assert path.read_text() == TEMPLATE


def test_empty_answers_take_defaults_and_leave_keys_out(run_cli, tmp_path):
    path = tmp_path / "pf-template.yml"
    result = run_cli("job", "template", "create", "-s", str(path), input="\n\n\n\ncifar\n\n\n\n\n")
    assert result.exit_code == 0
    spec = load_template(path.read_text()).spec
    assert (spec.name, spec.experiment, spec.vm, spec.num_devices) == (None, None, ("local",), 1)
    assert (spec.checkpoint, spec.data) == (None, None)
    assert spec.job_setting.docker.image is None
    # Where the script is, and not the folder above it.
    assert spec.job_setting.docker.command == "cd /workspace/cifar\npython main.py"


def test_of_several_devices_each_runs_the_command_unless_torchrun_does(run_cli, tmp_path):
    path = tmp_path / "pf-template.yml"
    run_cli("job", "template", "create", "-s", str(path), input="\n\n\n4\nno such\ncifar\n\n\n\n\n")
    assert load_template(path.read_text()).spec.job_setting.launch_mode == "device"


def test_a_wrong_answer_is_asked_again_with_the_nearest_vms(run_cli, tmp_path):
    path = tmp_path / "pf-template.yml"
    answers = [
        *ANSWERS[:2],
        "azure-16gb-v100-4g-eastu-spot",
        *ANSWERS[2:3],
        "many",
        ANSWERS[3],
        "no-such-folder",
        *ANSWERS[4:7],
        "ckpt",
        *ANSWERS[7:],
    ]
    result = run_cli("job", "template", "create", "-s", str(path), input="\n".join(answers) + "\n")
    assert result.exit_code == 0
    assert "is not in the catalogue. Near: azure-16gb-v100-4g-eastus-spot" in result.stderr
    assert "'no-such-folder' is no folder here." in result.stderr
    assert "'ckpt' must be an absolute path" in result.stderr
    assert path.read_text() == TEMPLATE


def test_an_input_that_ends_early_writes_nothing(run_cli, tmp_path):
    path = tmp_path / "pf-template.yml"
    result = run_cli("job", "template", "create", "-s", str(path), input="cifar-job\n")
    assert result.exit_code == 1
    assert result.stderr.endswith("\nError: the input ended before every question was answered.\n")
    assert not path.exists()


def test_a_file_that_exists_is_replaced_only_after_a_yes(run_cli, tmp_path):
    path = tmp_path / "pf-template.yml"
    path.write_text("mine")
    assert run_cli("job", "template", "create", "-s", str(path), input="n\n").exit_code == 1
    assert path.read_text() == "mine"


def test_text_that_yaml_would_read_as_something_else_is_quoted():
    answers = TemplateAnswers(
        "yes", "12", "local", 1, "image: x", "echo '# no comment: x'", "/w #1", "/c: d", "null", "/~"
    )
    spec = load_template(build_template_text(answers)).spec
    assert (spec.name, spec.experiment) == ("yes", "12")
    assert spec.job_setting.docker is not None
    assert spec.job_setting.docker.command == "cd '/w #1/image: x'\necho '# no comment: x'"
    assert spec.job_setting.workspace.mount_path == "/w #1"
    assert spec.checkpoint is not None
    assert spec.checkpoint.output_checkpoint_dir == "/c: d"
    assert spec.data is not None
    assert (spec.data.name, spec.data.mount_path) == ("null", "/~")


def test_schema_is_printed_as_json(run_cli):
    assert json.loads(run_cli("job", "schema").stdout) == build_json_schema()
