"""Writes docs/template-keys.md to standard output: every key of a template, from the schema that checks them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from periflow_ray.spec import build_json_schema

INTRODUCTION = """\
# Template keys

<!-- Made by scripts/generate-command-docs from the schema of the template; change that, not this file. -->

Every key that a `pf-template.yml` may have. [Templates](templates.md) shows whole ones, and what the keys do together.
A key inside of another one is indented below it in the file: `job_setting.docker.command` is

```text
job_setting:
  docker:
    command: ...
```

"Required" is a key that its section must have; a section that is itself optional may be left out as a whole. The
smallest template has `vm`, `num_devices`, `job_setting.type` and `job_setting.docker.command`.
"""

# How a pattern of the schema reads to people; a new one stops the script until it has words here.
_PATTERNS = {
    r"\S": "text",
    r"^\s*/+[^/\s]": "absolute path",
    r"^\s*[Hh][Tt][Tt][Pp][Ss]?://": "address (`http://` or `https://`)",
    r"^[0-9]+(\.[0-9]+)? ?([KMGTkmgt][Ii]?)?[Bb]$": "size, such as `16GiB`",
    r"^\s*[0-9]+(\.[0-9]+)? ?[smh]?\s*$": "duration, such as `90s` or `10m`",
}
_OF_SWEEPS = "[a section of its own](sweeps.md#the-file)"


def build_document() -> str:
    """The document, with a table for the keys at the top and one for each section."""
    schema: Mapping[str, Any] = build_json_schema()
    tables: dict[str, list[str]] = {}
    for key, property_, is_required in _walk(schema, schema, ""):
        section = key.partition(".")[0] if "." in key else "The job"
        default = "required" if is_required else _describe_default(property_)
        row = f"| `{key}` | {_describe(schema, property_)} | {default} | {_cell(property_['description'])} |"
        tables.setdefault(section, []).append(row)
    head = "| Key | Value | Default | Meaning |\n|---|---|---|---|"
    parts = [f"## {section}\n\n{head}\n" + "\n".join(rows) + "\n" for section, rows in tables.items()]
    return "\n".join([INTRODUCTION, *parts])


def _walk(schema: Mapping[str, Any], section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, bool]]:
    """Every key that holds a value: its dotted name, its schema, and whether its section must have it."""
    for name, property_ in section["properties"].items():
        key = f"{prefix}{name}"
        inner = _find_section(schema, property_)
        if inner is None or key == "sweep":
            yield key, property_, name in section.get("required", ())
        else:
            yield from _walk(schema, inner, f"{key}.")


def _find_section(schema: Mapping[str, Any], property_: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for form in (property_, *property_.get("anyOf", ())):
        if "$ref" in form:
            found: Mapping[str, Any] = schema["$defs"][form["$ref"].rpartition("/")[2]]
            return found
    return None


def _describe(schema: Mapping[str, Any], property_: Mapping[str, Any]) -> str:
    """What a key's value may be."""
    forms = [form for form in property_.get("anyOf", property_.get("oneOf", [property_])) if form.get("type") != "null"]
    return ", or ".join(_describe_form(schema, form) for form in forms)


def _describe_form(schema: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    if "$ref" in form:
        section = schema["$defs"][form["$ref"].rpartition("/")[2]]
        if "parameters" in section["properties"]:
            return _OF_SWEEPS
        return " and ".join(f"`{name}`" for name in section["properties"])
    if "const" in form:
        return f"`{form['const']}`"
    if "enum" in form:
        return " or ".join(f"`{value}`" for value in form["enum"])
    if form["type"] == "array":
        return f"a list of {_describe_form(schema, form['items'])}"
    if form["type"] == "boolean":
        return "`true` or `false`"
    if form["type"] == "object":
        return "`name: value` pairs"
    if form["type"] == "integer":
        return f"whole number, at least {form['minimum']}"
    if form["type"] == "number":
        return "number above 0" if "exclusiveMinimum" in form else "number"
    return _PATTERNS[form["pattern"]]


def _describe_default(property_: Mapping[str, Any]) -> str:
    default = property_.get("default")
    return "" if default in (None, []) else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    sys.stdout.write(build_document())
