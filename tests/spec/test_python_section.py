"""``job_setting.python``: what may be asked for, and what is said of the rest."""

from __future__ import annotations

import pytest

from periflow_ray.errors import TemplateError
from periflow_ray.spec import load_template
from periflow_ray.spec.python import PythonSpec

TEMPLATE = """\
vm: local
num_devices: 1
job_setting:
  type: custom
  docker: {{command: python main.py}}
  python: {python}
"""


def read(python: str) -> PythonSpec | None:
    return load_template(TEMPLATE.format(python=python)).spec.job_setting.python


def test_all_keys_are_read() -> None:
    text = "{requirements: ./deps/requirements.txt, packages: [tqdm], version: 3.10, system_packages: false}"
    assert read(text) == PythonSpec(
        requirements="deps/requirements.txt", packages=("tqdm",), version="3.10", system_packages=False
    )


def test_it_reads_what_it_writes() -> None:
    spec = PythonSpec(requirements="requirements.txt")
    assert PythonSpec.model_validate_json(spec.model_dump_json()) == spec


def test_an_empty_section_is_refused() -> None:
    with pytest.raises(TemplateError, match="has none of 'requirements', 'packages' and 'version'"):
        read("{packages: []}")


def test_every_problem_is_told_at_its_place() -> None:
    with pytest.raises(TemplateError) as caught:
        read(
            "\n    requirements: ../x.txt\n    packages: ['numpy=>1', tqdm, '-e .']\n    version: '2.7'\n"
            "    sytem_packages: true\n    system_packages: 'yes'"
        )
    first, second, *others = str(caught.value).splitlines()
    assert first == (
        "pf-template.yml:7:5: job_setting.python.requirements is '../x.txt'; it must be a file of the workspace (-d), "
        "such as 'requirements.txt'"
    )
    assert second.startswith("pf-template.yml:8:16: job_setting.python.packages.0 is 'numpy=>1': it is no requirement")
    assert others == [
        "pf-template.yml:8:34: job_setting.python.packages.2 is '-e .': it is an option; it must be a package, such as "
        "'numpy>=1.26'",
        "pf-template.yml:9:5: job_setting.python.version is '2.7'; it must be a minor version of Python 3, such as "
        "'3.11'",
        "pf-template.yml:10:5: unknown key 'sytem_packages' in job_setting.python. Did you mean 'system_packages'? "
        "Allowed: requirements, packages, version, system_packages",
        "pf-template.yml:11:5: job_setting.python.system_packages is the text 'yes'; it must be true or false",
    ]
