"""The Python that a job brings: ``job_setting.python``."""

from __future__ import annotations

import posixpath
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from periflow_ray.secret_mask import hide_logins
from periflow_ray.spec.fields import PlainScalar, describe_value, quote, read_text, refuse
from periflow_ray.spec.requirements import describe_bad_requirement
from periflow_ray.spec.section import Section

_VERSION = re.compile(r"3\.[0-9]{1,2}")


def read_relative_path(value: object) -> str:
    """The path of a file below the workspace."""
    text = read_text(value)
    path = posixpath.normpath(text)
    if path.startswith(("/", "~")) or path == "." or path.split("/")[0] == "..":
        raise refuse(f"is {quote(text)}; it must be a file of the workspace (-d), such as 'requirements.txt'")
    return path


def read_package(value: object) -> str:
    """A requirement as pip takes it."""
    text = read_text(value)
    if problem := describe_bad_requirement(text):
        raise refuse(hide_logins(f"is {quote(text)}: it {problem}"))
    return text


def read_packages(value: object) -> object:
    """A list; what is in it is read by itself."""
    if not isinstance(value, (list, tuple)):
        raise refuse(f"is {describe_value(value)}; it must be a list of packages, such as ['numpy>=1.26', pandas]")
    return value


def read_version(value: object) -> str:
    """A minor version of Python 3."""
    text = read_text(value)
    if not _VERSION.fullmatch(text):
        raise refuse(f"is {quote(text)}; it must be a minor version of Python 3, such as '3.11'")
    return text


def read_boolean(value: object) -> bool:
    """``true`` or ``false``."""
    if isinstance(value, PlainScalar) and value.kind == "boolean" and value.source.lower() in ("true", "false"):
        return value.source.lower() == "true"
    if isinstance(value, bool):
        return value
    raise refuse(f"is {describe_value(value)}; it must be true or false")


_Package = Annotated[str, BeforeValidator(read_package), WithJsonSchema({"type": "string", "pattern": r"\S"})]


class PythonSpec(Section):
    """Packages that the command finds, in an environment that jobs with the same ones share on a node."""

    requirements: (
        Annotated[str, BeforeValidator(read_relative_path), WithJsonSchema({"type": "string", "pattern": r"\S"})] | None
    ) = Field(
        default=None,
        description="Requirements file of pip's in the workspace directory (-d), such as requirements.txt; with the "
        "files that it includes.",
    )
    packages: Annotated[tuple[_Package, ...], BeforeValidator(read_packages)] = Field(
        default=(),
        description="Packages as pip takes them, such as [transformers, 'datasets>=3'].",
    )
    version: (
        Annotated[str, BeforeValidator(read_version), WithJsonSchema({"type": ["string", "number"], "pattern": r"\S"})]
        | None
    ) = Field(default=None, description="Minor version of Python, such as '3.11'; without it the cluster's.")
    system_packages: Annotated[bool, BeforeValidator(read_boolean), WithJsonSchema({"type": "boolean"})] | None = Field(
        default=None,
        description="Whether the cluster's packages, such as torch, are found as well, below those named here; true "
        "unless 'version' is another one than the cluster's.",
    )

    @model_validator(mode="after")
    def _require_something(self) -> PythonSpec:
        if self.requirements is None and not self.packages and self.version is None:
            raise refuse("has none of 'requirements', 'packages' and 'version'; it must have one at least")
        return self
