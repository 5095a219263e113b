"""Keys of the template as arguments of a Python call: the template's rules, and its words for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from periflow_ray.errors import UsageError
from periflow_ray.spec.models import JobSpec, PluginSpec
from periflow_ray.spec.problems import explain_validation_error

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
    try:
        spec = JobSpec.model_validate(template)
    except ValidationError as err:
        problems = explain_validation_error(err, positions={})
        raise UsageError("\n".join(problem.message.removeprefix(_SECTIONS) for problem in problems)) from None
    return Arguments(spec.plugin, spec.job_setting.docker.env_var)
