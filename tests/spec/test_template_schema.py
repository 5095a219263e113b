"""The JSON Schema that editors use says the same as the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from periflow_ray.spec import build_json_schema

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


def complaints(values: object) -> list[str]:
    validator = jsonschema.Draft202012Validator(build_json_schema())
    return sorted("/".join(map(str, error.absolute_path)) for error in validator.iter_errors(values))


def objects_in(schema: object) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for part in schema for found in objects_in(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if "properties" in schema else []
    return own + [found for part in schema.values() for found in objects_in(part)]


def test_the_schema_is_plain_json_and_valid_itself() -> None:
    schema = build_json_schema()

    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["vm", "num_devices", "job_setting"]


def test_every_key_has_a_description_and_every_section_refuses_unknown_keys() -> None:
    sections = objects_in(build_json_schema())

    assert len(sections) == 19
    assert [section for section in sections if section["additionalProperties"] is not False] == []
    assert [
        key for section in sections for key, field in section["properties"].items() if not field.get("description")
    ] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_editors_accept_every_tutorial_template(path: Path) -> None:
    assert complaints(read(path)) == []


def test_editors_mark_what_the_loader_refuses() -> None:
    values = read(TEMPLATES[0])
    values["num_device"] = 1
    values["num_devices"] = 0
    values["job_setting"]["type"] = "predefined"
    values["job_setting"]["docker"]["command"] = " "
    values["job_setting"]["docker"]["env_var"] = {"1ST": "x"}
    values["job_setting"]["workspace"]["mount_path"] = "workspace"
    values["job_setting"]["resources"] = {"cpus": 0, "memory": "16"}
    values["hang_timeout"] = "10 minutes"
    values["plugin"] = {"webhook": {"url": "ftp://example.com"}}
    values["checkpoint"] = {"keep_last": 0, "keep_best": {"metric": "loss", "mode": "lowest"}}

    assert complaints(values) == [
        "",
        "checkpoint",
        "hang_timeout",
        "job_setting/docker/command",
        "job_setting/docker/env_var",
        "job_setting/resources",
        "job_setting/type",
        "job_setting/workspace/mount_path",
        "num_devices",
        "plugin",
    ]
