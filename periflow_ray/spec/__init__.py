"""What the user asked for: pf-template.yml as text, as a ``JobSpec``, and as a JSON Schema; its keys in Python."""

from __future__ import annotations

from periflow_ray.spec.arguments import Arguments, parse_arguments, parse_job, parse_sweep
from periflow_ray.spec.loader import Template, load_sweep, load_template
from periflow_ray.spec.models import (
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
)
from periflow_ray.spec.schema import build_json_schema
from periflow_ray.spec.sweep import Method, SweepSpec
from periflow_ray.spec.sweep_parameters import Parameter

__all__ = [
    "Arguments",
    "CheckpointInput",
    "CheckpointSpec",
    "DataSpec",
    "DistSpec",
    "DockerSpec",
    "ElasticSpec",
    "JobSetting",
    "JobSpec",
    "KeepBest",
    "Method",
    "Parameter",
    "PluginSpec",
    "ResourcesSpec",
    "SetupAndRun",
    "SlackPlugin",
    "SweepSpec",
    "Template",
    "WandbPlugin",
    "WebhookPlugin",
    "WorkspaceSpec",
    "build_json_schema",
    "load_sweep",
    "load_template",
    "parse_arguments",
    "parse_job",
    "parse_sweep",
]
