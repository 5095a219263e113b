"""Whoever follows an example's page has what it needs, and gets what the page says."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import re
import shlex
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.documents import PRESENT_DOCUMENTS, ROOT_DIR

from periflow_ray.plan import load_catalogue
from periflow_ray.spec import load_template

if sys.version_info >= (3, 11):
    import tomllib
else:
    # pytest needs it there.
    import tomli as tomllib


def find_requirements(names: set[str]) -> set[str]:
    """These packages and all that they bring with them, by their normal names."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for text in importlib.metadata.requires(name) or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    names |= {canonicalize_name(requirement.name)} - found
    return found


@pytest.mark.parametrize("name", [name for name in PRESENT_DOCUMENTS if name.startswith("examples/")])
def test_an_example_installs_what_its_scripts_import(name: str) -> None:
    project = tomllib.loads((ROOT_DIR / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, *_ = PRESENT_DOCUMENTS[name].find_command_lines(("pip",))
    # Of the project, its extras, and packages of the example's own.
    what = shlex.split(first)[4:]
    extras = re.findall(r"\w+", "".join(word for word in what if word.startswith(".[")))
    wanted = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    names = {Requirement(text).name for text in [*wanted, *(word for word in what if not word.startswith("."))]}
    installed = find_requirements({canonicalize_name(text) for text in names})
    folder = ROOT_DIR / Path(name).parent
    imported = {
        module.partition(".")[0]
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    own = {path.stem for path in folder.glob("*.py")} | {"periflow_ray", *sys.stdlib_module_names}
    distributions = importlib.metadata.packages_distributions()

    assert re.match(r"pip install -c constraints.txt '?\.", first)
    assert [
        module
        for module in sorted(imported - own)
        if not installed & {canonicalize_name(package) for package in distributions[module]}
    ] == []


def test_no_two_examples_write_to_the_same_temporary_folder() -> None:
    folders = [
        (folder, name.partition("/README")[0])
        for name, document in PRESENT_DOCUMENTS.items()
        for folder in set(re.findall(r"/tmp/[\w-]+", document.text))
        if name.startswith("examples/")
    ]

    assert len(folders) > 6
    assert {folder: {other for found, other in folders if found == folder} for folder, _ in folders} == {
        folder: {example} for folder, example in folders
    }


def test_an_install_of_the_project_in_a_block_takes_the_tested_versions() -> None:
    installs = [
        (name, line)
        for name, document in PRESENT_DOCUMENTS.items()
        for line in re.findall(r"^(?: {4})?(pip install .*)$", document.text, re.M)
        if re.search(r" '?\.", line)
    ]

    assert len(installs) > 10
    assert [(name, line) for name, line in installs if " -c constraints.txt " not in line] == []


def test_the_machine_that_an_example_is_said_to_name_is_that_of_its_template() -> None:
    catalogue = load_catalogue()
    devices = {vm.accelerator for vm in catalogue.values()} - {"CPU"}
    wrong = []
    for name, document in PRESENT_DOCUMENTS.items():
        template = document.path.parent / "pf-template.yml"
        if name.startswith("examples/") and template.exists():
            vm = catalogue[load_template(template.read_text(encoding="utf-8")).spec.vm[0]]
            said = {
                device for device in devices if re.search(rf"(?<![A-Za-z0-9]){device}(?![A-Za-z0-9])", document.text)
            }
            wrong += [] if said == {vm.accelerator} else [(name, said)]
    assert wrong == []
