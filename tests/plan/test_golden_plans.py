"""Whole plans of whole templates. After a change made on purpose: ``python tests/plan/test_golden_plans.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.plan import JobPlan, build_plan, find_vm
from periflow_ray.spec import load_template

GOLDEN_DIR = Path(__file__).parent / "golden"

OPTIONS: dict[str, dict[str, Any]] = {
    "cifar": {"storage_uri": "s3://team-bucket/periflow", "workspace_dir_name": "cifar"},
    "pth-lightning": {
        "storage_uri": "abfs://jobs@team/periflow",
        "storage_credential": "team-azure",
        "upload_bandwidth_bytes_per_s": 50_000_000,
        "workspace_dir_name": "pth-lightning",
    },
    "local-2x1": {
        "storage_uri": "file:///data/periflow",
        "workspace_dir_name": "train",
        "extra_env": {"OMP_NUM_THREADS": "2"},
        "secret_names": ["WANDB_API_KEY"],
        "num_local_cpus": 2,
    },
}


def plan_of(name: str) -> JobPlan:
    spec = load_template((GOLDEN_DIR / f"{name}.yml").read_text()).spec
    return build_plan(spec, find_vm(spec.vm[0]), **OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_plan_of_a_template_is_exactly_the_golden_one(name: str) -> None:
    assert plan_of(name).model_dump(mode="json") == json.loads((GOLDEN_DIR / f"{name}.json").read_text())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_plan_is_the_same_after_a_journey_as_json(name: str) -> None:
    plan = plan_of(name)
    assert JobPlan.model_validate_json(plan.model_dump_json()) == plan


def test_every_golden_template_has_its_plan_and_options() -> None:
    assert {path.stem for path in GOLDEN_DIR.glob("*.yml")} == set(OPTIONS)
    assert {path.stem for path in GOLDEN_DIR.glob("*.json")} == set(OPTIONS)


if __name__ == "__main__":
    for each in OPTIONS:
        (GOLDEN_DIR / f"{each}.json").write_text(plan_of(each).model_dump_json(indent=2) + "\n")
