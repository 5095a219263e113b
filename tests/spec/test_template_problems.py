"""Every problem of a template is listed at once: where, what was given, what is allowed, the nearest valid name."""

from __future__ import annotations

import pytest

from periflow_ray.errors import TemplateError
from periflow_ray.spec import load_template

TOP_LEVEL_KEYS = (
    "experiment, name, vm, fallback, num_devices, job_setting, checkpoint, data, dist, plugin, max_failures, "
    "hang_timeout, elastic, sweep"
)
MINIMAL = """\
vm: local
num_devices: 8
job_setting:
  type: custom
  docker:
    command: python main.py
"""


def problems_of(text: str | bytes) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        load_template(text)
    return str(caught.value).split("\n")


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: cifar
vm: no
num_device: 8
name: again
job_setting:
  type: costum
  docker:
    image: [a, b]
    env_var:
      1ST: x
      EMPTY:
      NESTED: {a: b}
  launch_mode: nodes
  workspace: /workspace
checkpoint:
  output_checkpoint_dir: ckpt
  input: {id: 5}
dist:
  dp_degree: 2
max_failures: -1
"""
    assert problems_of(text) == [
        "pf-template.yml:1:1: num_devices is missing; it is required: Devices (GPUs) of the whole job, not VMs: "
        "16 on 4-GPU VMs is 4 VMs.",
        "pf-template.yml:2:1: vm is no, which YAML reads as a boolean; it must be text: put it in quotes, 'no'",
        f"pf-template.yml:3:1: unknown key 'num_device'. Did you mean 'num_devices'? Allowed: {TOP_LEVEL_KEYS}",
        "pf-template.yml:4:1: key 'name' is given twice, first on line 1; keep one of them",
        "pf-template.yml:6:3: job_setting.type is the text 'costum'; it must be 'custom'.",
        "pf-template.yml:7:3: job_setting.docker.command is missing; it is required: Bash command, run once per node "
        "(or device, see launch_mode): text, or {setup, run, teardown}. Set for it: MASTER_ADDR, MASTER_PORT, "
        "WORLD_SIZE, NODE_RANK, NUM_NODES, NPROC_PER_NODE.",
        "pf-template.yml:8:5: job_setting.docker.image is a list; it must be text",
        "pf-template.yml:10:7: job_setting.docker.env_var.1ST is not a valid environment variable name: use letters, "
        "digits and underscores, and no digit first",
        "pf-template.yml:11:7: job_setting.docker.env_var.EMPTY has no value; write '' for an empty one",
        "pf-template.yml:12:7: job_setting.docker.env_var.NESTED is a mapping; it must be text, a number or a boolean",
        "pf-template.yml:13:3: job_setting.launch_mode is the text 'nodes'; it must be 'node' or 'device'. "
        "Did you mean 'node'?",
        "pf-template.yml:14:3: job_setting.workspace is the text '/workspace'; it must be a mapping with the keys "
        "mount_path",
        "pf-template.yml:16:3: checkpoint.output_checkpoint_dir is 'ckpt'; it must be an absolute path below / "
        "without '..', for example '/workspace'",
        "pf-template.yml:17:3: checkpoint.input.mount_path is missing; it is required: Absolute path where the "
        "checkpoint's files appear.",
        "pf-template.yml:18:1: dist.mp_degree is missing; it is required: Model (tensor) parallel degree; "
        "dist needs all three degrees.",
        "pf-template.yml:18:1: dist.pp_degree is missing; it is required: Pipeline parallel degree; "
        "dist needs all three degrees.",
        "pf-template.yml:20:1: max_failures is the number -1; it must be a decimal whole number from 0 to 1000000",
    ]


def test_what_to_keep_of_the_checkpoints_is_a_count_and_a_metric_with_its_direction() -> None:
    rules = "checkpoint:\n  keep_last: 0\n  keep_best: {metric: loss, mode: minimum}\n"
    assert problems_of(MINIMAL + rules) == [
        "pf-template.yml:8:3: checkpoint.keep_last is the number 0; it must be a decimal whole number from 1 to "
        "1000000",
        "pf-template.yml:9:29: checkpoint.keep_best.mode is the text 'minimum'; it must be 'min' or 'max'. "
        "Did you mean 'min'?",
    ]
    assert problems_of(MINIMAL + "checkpoint:\n  keep_best: {metric: loss}\n") == [
        "pf-template.yml:8:3: checkpoint.keep_best.mode is missing; it is required: 'min' if the lowest value is the "
        "best (a loss), 'max' if the highest is (an accuracy)."
    ]


@pytest.mark.parametrize("given", ["0s", "ten minutes", "-5", "10 min", "1d"])
def test_a_hang_timeout_is_a_duration_above_zero(given: str) -> None:
    assert problems_of(f"{MINIMAL}hang_timeout: {given}\n") == [
        f"pf-template.yml:7:1: hang_timeout is '{given}'; it must be a duration above 0. Give a number and s, m or h: "
        "30s, 2m, 1.5h."
    ]


def test_a_key_on_the_wrong_level_is_told_where_it_belongs() -> None:
    assert problems_of(MINIMAL + "image: pytorch\n") == [
        f"pf-template.yml:7:1: unknown key 'image'. It belongs in job_setting.docker. Allowed: {TOP_LEVEL_KEYS}"
    ]


def test_a_required_key_with_nothing_behind_it_is_empty_rather_than_missing() -> None:
    assert problems_of(MINIMAL.replace("local", "")) == [
        "pf-template.yml:1:1: vm is empty; it is required: VM type to run on, or 'local' for this machine; "
        "list all: periflow-ray vm list. Of several the first one is taken that the cloud has."
    ]


def test_predefined_jobs_are_told_that_their_catalogue_is_gone() -> None:
    text = """\
vm: local
num_devices: 8
job_setting:
  type: predefined
  template_id: 3f2a
  model_config: {}
"""
    assert problems_of(text) == [
        "pf-template.yml:4:3: job_setting.type is 'predefined': the hosted catalogue of predefined jobs (template_id, "
        "model_config) no longer exists. Use 'type: custom' with docker.command"
    ]


def test_parallelism_degrees_must_multiply_to_the_devices_even_when_another_key_is_wrong() -> None:
    assert problems_of("nam: x\n" + MINIMAL + "dist: {dp_degree: 2, pp_degree: 1, mp_degree: 2}\n") == [
        f"pf-template.yml:1:1: unknown key 'nam'. Did you mean 'name'? Allowed: {TOP_LEVEL_KEYS}",
        "pf-template.yml:8:1: dist places 4 devices (dp_degree 2 x pp_degree 1 x mp_degree 2), but num_devices is 8; "
        "the product must equal num_devices",
    ]


def test_plugins_need_their_credentials() -> None:
    assert problems_of(MINIMAL + "plugin:\n  slack: {channel: ''}\n  wandb: {credentials_id: x}\n") == [
        "pf-template.yml:8:3: plugin.slack.credential_id is missing; it is required: Credential of type slack.",
        "pf-template.yml:8:11: plugin.slack.channel is empty; it must be text",
        "pf-template.yml:9:3: plugin.wandb.credential_id is missing; it is required: Credential of type wandb.",
        "pf-template.yml:9:11: unknown key 'credentials_id' in plugin.wandb. Did you mean 'credential_id'? "
        "Allowed: credential_id",
    ]


def test_a_webhook_needs_one_address_which_no_message_repeats() -> None:
    def webhook(text: str) -> list[str]:
        return problems_of(f"{MINIMAL}plugin:\n  webhook: {text}\n")

    assert webhook("{}") == [
        "pf-template.yml:8:3: plugin.webhook has neither of 'url' and 'credential_id'; it must have exactly one of them"
    ]
    assert webhook("{url: 'https://h/k', credential_id: hook}") == [
        "pf-template.yml:8:3: plugin.webhook has both of 'url' and 'credential_id'; it must have exactly one of them"
    ]
    for url in ("ftp://h/hunter2", "https:///hunter2", "hunter2", "https://h:x/hunter2", "https://h/hunter2 hunter2"):
        assert webhook(f"{{url: '{url}'}}") == [
            "pf-template.yml:8:13: plugin.webhook.url must be a URL that starts with http:// or https://, for example "
            "'https://example.com/hook'"
        ]
    assert webhook("{url: 'https://ada:hunter2@h/k'}") == [
        "pf-template.yml:8:13: plugin.webhook.url holds a login; put the URL and an authorization into a credential, "
        "and name it in credential_id"
    ]


@pytest.mark.parametrize("key", ["config", "split", "revision"])
def test_only_a_huggingface_dataset_has_parts(key: str) -> None:
    data = f"data: {{name: mine, mount_path: /data, {key}: train}}\n"
    assert problems_of(MINIMAL + data) == [
        f"pf-template.yml:7:39: data.{key} is given for 'mine', but only a public dataset, whose name is "
        "huggingface:<dataset>, has one"
    ]
    assert load_template(MINIMAL + data.replace("mine", "'huggingface:mine'")).spec.data is not None


def test_a_huggingface_dataset_needs_a_name() -> None:
    assert problems_of(MINIMAL + "data: {name: 'huggingface:', mount_path: /data}\n") == [
        "pf-template.yml:7:8: data.name is 'huggingface:' without a dataset; it must be huggingface:<dataset>"
    ]


def test_an_environment_variable_named_like_our_own_tags_keeps_its_path() -> None:
    assert problems_of(MINIMAL + "    env_var: {'[key]': [1], '<text>': 1}\n") == [
        "pf-template.yml:7:15: job_setting.docker.env_var.[key] is a list; it must be text, a number or a boolean",
        "pf-template.yml:7:15: job_setting.docker.env_var.[key] is not a valid environment variable name: use "
        "letters, digits and underscores, and no digit first",
        "pf-template.yml:7:29: job_setting.docker.env_var.<text> is not a valid environment variable name: use "
        "letters, digits and underscores, and no digit first",
    ]


def test_long_and_unprintable_text_is_cut_and_escaped_to_stay_on_one_line() -> None:
    problems = problems_of(MINIMAL + f'"{"k" * 500}": 1\nname: "a\\nb\\0"\n')

    assert problems == [
        f"pf-template.yml:7:1: unknown key '{'k' * 57}...'. Allowed: {TOP_LEVEL_KEYS}",
        "pf-template.yml:8:1: name is the text 'a\\nb\\x00'; it must be one line without control characters",
    ]


def test_after_fifty_problems_the_rest_is_counted() -> None:
    problems = problems_of(MINIMAL + "".join(f"key{index}: 1\n" for index in range(60)))

    assert len(problems) == 51
    assert problems[-1] == "... and 10 more problems"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("elastic: {min_devices: 9}", "elastic has min_devices 9; it must be at most num_devices, 8"),
        (
            "dist: {dp_degree: 8, pp_degree: 1, mp_degree: 1}\nelastic: {min_devices: 4}",
            "elastic cannot be used with dist, whose degrees fix the number of devices",
        ),
    ],
)
def test_an_elastic_job_needs_bounds_that_can_be_met(section: str, problem: str) -> None:
    (found,) = problems_of(MINIMAL + section + "\n")
    assert found.split(": ", 1)[1] == problem


def test_a_value_that_is_too_long_for_a_variable_is_refused_without_repeating_it() -> None:
    text = "x" * 120_001
    assert problems_of(MINIMAL + f"    env_var: {{A: '{text}'}}\n") == [
        "pf-template.yml:7:15: job_setting.docker.env_var.A has 120,001 bytes; a variable may have 120,000. Put the "
        "text into a file of the workspace"
    ]
