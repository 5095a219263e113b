"""Reading templates: what values may look like, where keys stand, and command line options."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from periflow_ray.errors import TemplateError
from periflow_ray.spec import DataSpec, JobSpec, ResourcesSpec, Template, load_template

MINIMAL = """\
vm: local
num_devices: 2
job_setting:
  type: custom
  docker:
    command: python main.py
"""


def problems_of(text: str | bytes, **options: object) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        load_template(text, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def env_var_of(yaml_value: str) -> str:
    return load_template(MINIMAL + f"    env_var: {{NAME: {yaml_value}}}\n").spec.job_setting.docker.env_var["NAME"]


def test_the_minimal_template_takes_every_default() -> None:
    assert load_template(MINIMAL).spec.model_dump() == {
        "experiment": None,
        "name": None,
        "vm": ("local",),
        "fallback": None,
        "num_devices": 2,
        "job_setting": {
            "type": "custom",
            "docker": {"image": None, "options": (), "command": "python main.py", "credential_id": None, "env_var": {}},
            "workspace": {"mount_path": "/workspace"},
            "launch_mode": "node",
            "resources": None,
            "python": None,
        },
        "checkpoint": None,
        "data": None,
        "dist": None,
        "plugin": None,
        "max_failures": 0,
        "hang_timeout": None,
        "elastic": None,
        "sweep": None,
    }


def test_bytes_and_a_byte_order_mark_are_read_as_utf_8() -> None:
    text = MINIMAL.replace("vm: local", "name: 이미지 분류\nvm: local")

    assert load_template(b"\xef\xbb\xbf" + text.encode()).spec.name == "이미지 분류"
    assert load_template("\ufeff" + text).spec.name == "이미지 분류"


def test_a_spec_survives_its_own_dump() -> None:
    spec = load_template(MINIMAL + "    env_var: {A: 1}\ndist: {dp_degree: 2, pp_degree: 1, mp_degree: 1}\n").spec

    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1", "1"),
        ("1.10", "1.10"),
        ("010", "010"),
        ("1e-4", "1e-4"),
        ("1:30", "1:30"),
        ("true", "true"),
        ("True", "True"),
        ("no", "no"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("''", ""),
        ("!!str 5", "5"),
    ],
)
def test_environment_variables_are_what_is_written(written: str, read: str) -> None:
    assert env_var_of(written) == read


def test_a_variable_may_be_named_like_a_yaml_boolean() -> None:
    spec = load_template(MINIMAL + "    env_var: {NO: 1, Y: on}\n").spec

    assert spec.job_setting.docker.env_var == {"NO": "1", "Y": "on"}


@pytest.mark.parametrize("written", ["123", "1.10", "2024-01-01", "'123'", ".nan"])
def test_a_name_may_look_like_a_number_or_a_date(written: str) -> None:
    assert load_template(MINIMAL + f"name: {written}\n").spec.name == written.strip("'")


@pytest.mark.parametrize("written", ["no", "Yes", "off", "true"])
def test_a_name_that_yaml_reads_as_a_boolean_needs_quotes(written: str) -> None:
    assert problems_of(MINIMAL + f"name: {written}\n") == [
        f"pf-template.yml:7:1: name is {written}, which YAML reads as a boolean; it must be text: "
        f"put it in quotes, '{written}'"
    ]
    assert load_template(MINIMAL + f"name: '{written}'\n").spec.name == written


@pytest.mark.parametrize(
    ("written", "described"),
    [
        ("0", "the number 0"),
        ("-1", "the number -1"),
        ("1.5", "the number 1.5"),
        ("010", "the number 010"),
        ("0x10", "the number 0x10"),
        ("1:30", "the number 1:30"),
        ("yes", "yes (a boolean)"),
        ("eight", "the text 'eight'"),
        ("[8]", "a list"),
        ("{n: 8}", "a mapping"),
        ("9" * 30, "the number " + "9" * 30),
    ],
)
def test_num_devices_is_a_decimal_whole_number_from_one(written: str, described: str) -> None:
    assert problems_of(MINIMAL.replace("num_devices: 2", f"num_devices: {written}")) == [
        f"pf-template.yml:2:1: num_devices is {described}; it must be a decimal whole number from 1 to 1000000"
    ]


def test_a_quoted_number_of_devices_is_told_to_lose_its_quotes() -> None:
    assert problems_of(MINIMAL.replace("num_devices: 2", "num_devices: '2'")) == [
        "pf-template.yml:2:1: num_devices is the text '2'; it must be a decimal whole number from 1 to 1000000, "
        "without quotes"
    ]


@pytest.mark.parametrize(
    ("memory", "num_bytes"),
    [("16GiB", 16 * 2**30), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("2tb", 2 * 10**12), ("7B", 7)],
)
def test_memory_is_a_size_with_a_unit(memory: str, num_bytes: int) -> None:
    assert ResourcesSpec(memory=memory).memory_bytes == num_bytes


@pytest.mark.parametrize("memory", ["16", "16Gi", "-1GB", "0GiB", "lots", "1e3MB"])
def test_a_size_without_a_known_unit_or_not_above_zero_is_refused(memory: str) -> None:
    with pytest.raises(ValidationError, match="it must be a size above 0 with a unit"):
        ResourcesSpec(memory=memory)


def test_resources_that_are_not_given_have_no_bytes() -> None:
    assert ResourcesSpec().memory_bytes is None


@pytest.mark.parametrize("path", ["workspace", "./ckpt", "~/ckpt", "$HOME/ckpt", "/", "//", "/a/../b", "C:\\ckpt"])
def test_mount_paths_are_absolute_and_below_the_root(path: str) -> None:
    assert problems_of(MINIMAL + f"  workspace: {{mount_path: '{path}'}}\n") == [
        f"pf-template.yml:7:15: job_setting.workspace.mount_path is {path!r}; it must be an absolute path below / "
        "without '..', for example '/workspace'"
    ]


def test_repeated_and_trailing_slashes_of_a_path_are_dropped() -> None:
    assert DataSpec(name="mnist", mount_path="//workspace//data/").mount_path == "/workspace/data"


def test_a_huggingface_name_is_what_follows_the_prefix() -> None:
    hub = DataSpec(name="huggingface:huggingface/fig", mount_path="/data")
    own = DataSpec(name="huggingface-copy", mount_path="/data")

    assert (hub.is_huggingface, hub.huggingface_name) == (True, "huggingface/fig")
    assert (own.is_huggingface, own.huggingface_name) == (False, None)


def test_a_key_with_nothing_behind_it_counts_as_absent() -> None:
    text = MINIMAL + "  workspace:\n  launch_mode:\ncheckpoint:\ndata: ~\ndist: {}\nmax_failures: null\n"

    assert load_template(text).spec == load_template(MINIMAL).spec


def test_aliases_and_merge_keys_are_resolved_and_own_keys_win() -> None:
    text = """\
vm: local
num_devices: 4
job_setting:
  type: custom
  docker:
    command: python main.py
  workspace: &place
    mount_path: /shared
data:
  <<: *place
  name: mnist
dist: &degrees {dp_degree: 4, pp_degree: 1, mp_degree: 1}
checkpoint:
  input:
    <<: [*place]
    mount_path: /input
    id: abc
"""
    spec = load_template(text).spec

    assert spec.data == DataSpec(name="mnist", mount_path="/shared")
    assert spec.checkpoint is not None
    assert spec.checkpoint.input is not None
    assert spec.checkpoint.input.mount_path == "/input"


def test_a_frozen_spec_refuses_assignment() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_template(MINIMAL).spec.vm = "other"  # type: ignore[misc]


def test_locate_names_the_line_and_column_of_a_key_or_its_nearest_ancestor() -> None:
    template = load_template(MINIMAL, source="my/job.yml")

    assert template.locate(("num_devices",)) == "my/job.yml:2:1"
    assert template.locate(("job_setting", "docker", "command")) == "my/job.yml:6:5"
    assert template.locate(("job_setting", "workspace", "mount_path")) == "my/job.yml:3:1"
    assert template.locate(("dist", "dp_degree")) == "my/job.yml:1:1"
    assert template.locate(()) == "my/job.yml:1:1"


def test_command_line_options_replace_top_level_keys() -> None:
    overrides = {"name": "trial", "vm": "other", "experiment": "sweep", "num_devices": 1}

    template = load_template(MINIMAL, overrides=overrides, known_vms=["other"])

    spec = template.spec
    assert (spec.name, spec.vm, spec.experiment, spec.num_devices) == ("trial", ("other",), "sweep", 1)
    assert template.locate(("num_devices",)) == "--num-devices"


def test_options_that_were_not_given_change_nothing() -> None:
    template = load_template(MINIMAL, overrides={"name": None, "vm": None})

    assert template == Template(load_template(MINIMAL).spec, "pf-template.yml", load_template(MINIMAL).positions)


def test_a_wrong_option_is_named_instead_of_a_line() -> None:
    overrides = {"num_devices": 0, "vm": "locl"}

    assert problems_of(MINIMAL, overrides=overrides, known_vms=["local"]) == [
        "--num-devices: num_devices is the number 0; it must be a decimal whole number from 1 to 1000000",
        "--vm: vm 'locl' is not in the catalogue. Did you mean 'local'? List all: periflow-ray vm list",
    ]


def test_an_option_may_supply_what_the_template_lacks_or_has_wrong() -> None:
    text = MINIMAL.replace("vm: local\n", "").replace("num_devices: 2", "num_devices: many")

    assert load_template(text, overrides={"vm": "local", "num_devices": 2}).spec == load_template(MINIMAL).spec


@pytest.mark.parametrize("vm", ["azure-16gb-v100-4g-eastu", "AZURE-16GB-V100-4G-EASTUS"])
def test_an_unknown_vm_gets_the_nearest_name(vm: str) -> None:
    known_vms = ["local", "azure-16gb-v100-4g-eastus", "aws-80gb-h100-8g-us-east-2"]

    assert problems_of(MINIMAL.replace("local", vm), known_vms=known_vms) == [
        f"pf-template.yml:1:1: vm '{vm}' is not in the catalogue. Did you mean 'azure-16gb-v100-4g-eastus'? "
        "List all: periflow-ray vm list"
    ]


def test_a_vm_that_looks_like_a_number_is_checked_too() -> None:
    assert problems_of(MINIMAL.replace("local", "123"), known_vms=["local"]) == [
        "pf-template.yml:1:1: vm '123' is not in the catalogue. List all: periflow-ray vm list"
    ]
