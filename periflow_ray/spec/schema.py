"""The template's JSON Schema, for completion and checks in editors."""

from __future__ import annotations

from pydantic.json_schema import GenerateJsonSchema

from periflow_ray.spec.models import JobSpec


def build_json_schema() -> dict[str, object]:
    """The JSON Schema of pf-template.yml; the loader knows more (VM names, the product of dist, duplicate keys)."""
    schema = JobSpec.model_json_schema(schema_generator=_UntitledFields)
    schema["title"] = "pf-template.yml"
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


class _UntitledFields(GenerateJsonSchema):
    """Leaves out titles such as "Num Devices", which editors would show in place of the key."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False
