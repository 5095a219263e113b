"""Keys of the template as arguments of a Python call: the template's rules, and its words for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from periflow_ray.errors import UsageError
from periflow_ray.spec.models import JobSpec, PluginSpec
from periflow_ray.spec.problems import explain_validation_error
from periflow_ray.spec.section import Section
from periflow_ray.spec.sweep import SweepSpec

_Model = TypeVar("_Model", bound=Section)

# An argument goes by its key alone; a script has no sections.
_SECTIONS = "job_setting.docker."


@dataclass(frozen=True)
class Arguments:
    """What a function job is told in the template's terms."""

    plugin: PluginSpec | None
    env_var: dict[str, str]


def parse_arguments(*, plugin: object, env_var: object) -> Arguments:
    """Check arguments as the keys ``plugin`` and ``job_setting.docker.env_var`` of a template; None is none.

    Raises:
        UsageError: one line for each problem.
    """
    docker = {"command": "true", "env_var": env_var}
    template = {
        "vm": "local",
        "num_devices": 1,
        "job_setting": {"type": "custom", "docker": docker},
        "plugin": plugin,
    }
    spec = parse_job(template)
    return Arguments(spec.plugin, spec.job_setting.docker.env_var)


def parse_job(template: Mapping[str, object]) -> JobSpec:
    """Check a template that a Python call has put together.

    Raises:
        UsageError: one line for each problem.
    """
    return _parse(JobSpec, template)


def parse_sweep(keys: Mapping[str, object]) -> SweepSpec:
    """Check arguments as the keys of a sweep's file.

    Raises:
        UsageError: one line for each problem.
    """
    return _parse(SweepSpec, keys)


def _parse(model: type[_Model], values: Mapping[str, object]) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as err:
        problems = explain_validation_error(err, {}, model)
        raise UsageError("\n".join(problem.message.removeprefix(_SECTIONS) for problem in problems)) from None
