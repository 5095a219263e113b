"""Several VM types in a template: the first one that the cloud has is taken."""

from __future__ import annotations

from typing import Any

import pytest

from periflow_ray.errors import TemplateError
from periflow_ray.spec import JobSpec, load_template

KNOWN = ["local", "t4", "t4-spot", "a10g", "a10g-spot"]
TEMPLATE = """\
num_devices: 8
vm: {vm}
job_setting:
  type: custom
  docker:
    command: python main.py
"""


def spec_of(vm: str, more: str = "") -> JobSpec:
    return load_template(TEMPLATE.format(vm=vm) + more, known_vms=KNOWN).spec


def problems_of(vm: str, more: str = "", **options: Any) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        load_template(TEMPLATE.format(vm=vm) + more, known_vms=KNOWN, **options)
    return str(caught.value).split("\n")


def test_one_name_is_a_list_of_one() -> None:
    assert spec_of("t4") == spec_of("[t4]")
    assert spec_of("t4").vm_names == ("t4",)


def test_a_list_keeps_its_order() -> None:
    assert spec_of("[t4-spot, a10g, t4]").vm_names == ("t4-spot", "a10g", "t4")
    assert spec_of("\n  - a10g\n  - t4").vm_names == ("a10g", "t4")


@pytest.mark.parametrize(
    ("vm", "names"),
    [
        ("t4-spot", ("t4-spot", "t4")),
        # There is nothing to fall back on.
        ("t4", ("t4",)),
        # Each at its full price before the next one.
        ("[t4-spot, a10g-spot]", ("t4-spot", "t4", "a10g-spot", "a10g")),
        # What is in the list already is asked for once.
        ("[t4-spot, t4]", ("t4-spot", "t4")),
        ("[t4, t4-spot]", ("t4", "t4-spot")),
        ("local", ("local",)),
    ],
)
def test_on_demand_is_the_fallback_of_each_spot_type(vm: str, names: tuple[str, ...]) -> None:
    assert spec_of(vm, "fallback: on_demand\n").vm_names == names


def test_each_unknown_name_of_a_list_is_told_with_its_own_line() -> None:
    assert problems_of("\n  - t4-spott\n  - t4\n  - a10") == [
        "pf-template.yml:3:5: vm 't4-spott' is not in the catalogue. Did you mean 't4-spot'? List all: periflow-ray vm "
        "list",
        "pf-template.yml:5:5: vm 'a10' is not in the catalogue. Did you mean 'a10g'? List all: periflow-ray vm list",
    ]


def test_an_option_with_an_unknown_name_is_named_instead_of_a_line() -> None:
    assert problems_of("t4", overrides={"vm": ["t4", "a10"]}) == [
        "--vm: vm 'a10' is not in the catalogue. Did you mean 'a10g'? List all: periflow-ray vm list"
    ]


@pytest.mark.parametrize(
    ("vm", "problem"),
    [
        ("[]", "vm is an empty list; it must have a name at least"),
        ("[t4, a10g, t4]", "vm has a name twice"),
        ("{a: b}", "vm is a mapping; it must be text"),
        ("[[t4]]", "vm is a list; it must be text"),
    ],
)
def test_what_is_no_list_of_names_is_one_problem(vm: str, problem: str) -> None:
    assert problems_of(vm) == [f"pf-template.yml:2:1: {problem}"]


def test_an_unknown_fallback_is_told_what_it_may_be() -> None:
    assert problems_of("t4-spot", "fallback: ondemand\n") == [
        "pf-template.yml:7:1: fallback is the text 'ondemand'; it must be 'on_demand'."
    ]


def test_a_fallback_with_nothing_behind_it_is_none() -> None:
    assert spec_of("t4-spot", "fallback:\n") == spec_of("t4-spot")
