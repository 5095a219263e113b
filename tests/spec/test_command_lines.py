"""A command that YAML spreads over several lines runs in bash as its author meant it; each is run to see."""

from __future__ import annotations

import subprocess
import textwrap

import pytest

from periflow_ray.errors import TemplateError
from periflow_ray.spec import DockerSpec, SetupAndRun, load_template


def read_command(yaml_lines: str) -> str | SetupAndRun:
    """The command of a template whose ``docker`` section consists of the given lines."""
    head = "vm: local\nnum_devices: 1\njob_setting:\n  type: custom\n  docker:\n"
    docker = textwrap.indent(textwrap.dedent(yaml_lines).lstrip("\n"), "    ")
    return load_template(head + docker).spec.job_setting.docker.command


def run_arguments(command: str | SetupAndRun) -> list[str]:
    """The arguments that bash gives to ``show`` in the command; several calls are separated by '/'."""
    assert isinstance(command, str)
    script = "show() { printf '%s|' \"$@\"; printf '/|'; }\n" + command
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split("|")[:-2]


FOLDED_AT_ONE_INDENTATION = r"""
command: >
  show main.py \
  --model resnet50 \
  --save /ckpt
"""
FOLDED_FURTHER_INDENTED = r"""
command: >
  show main.py \
    --model resnet50 \
    --save /ckpt
"""
FOLDED_WITH_SPACES_AFTER_BACKSLASHES = "command: >\n  show main.py \\  \n  --model resnet50 \\ \n    --save /ckpt\n"
FOLDED_ENDING_IN_A_BACKSLASH = r"""
command: >-
  show main.py \
  --model resnet50 \
  --save /ckpt \
"""
FOLDED_WITHOUT_BACKSLASHES = r"""
command: >
  show main.py
  --model resnet50
  --save /ckpt
"""
LITERAL = r"""
command: |
  show main.py \
    --model resnet50 \
    --save /ckpt \
"""
UNQUOTED = r"""
command: show main.py \
  --model resnet50 \
  --save /ckpt
"""
SINGLE_QUOTED = r"""
command: 'show main.py \
  --model resnet50 \
  --save /ckpt'
"""
DOUBLE_QUOTED = r"""
command: "show main.py \
  --model resnet50 \
  --save /ckpt"
"""


@pytest.mark.parametrize(
    "yaml_lines",
    [
        FOLDED_AT_ONE_INDENTATION,
        FOLDED_FURTHER_INDENTED,
        FOLDED_WITH_SPACES_AFTER_BACKSLASHES,
        FOLDED_ENDING_IN_A_BACKSLASH,
        FOLDED_WITHOUT_BACKSLASHES,
        FOLDED_AT_ONE_INDENTATION.replace("\n", "\r\n"),
        LITERAL,
        UNQUOTED,
        SINGLE_QUOTED,
        DOUBLE_QUOTED,
    ],
)
def test_a_command_spread_over_lines_gets_exactly_its_words(yaml_lines: str) -> None:
    arguments = run_arguments(read_command(yaml_lines))

    assert arguments == ["main.py", "--model", "resnet50", "--save", "/ckpt"]


def test_an_escaped_space_inside_a_line_stays_one_argument() -> None:
    command = read_command(
        r"""
        command: >
          show my\ file.py \
          --path /data/with\ space
        """
    )

    assert run_arguments(command) == ["my file.py", "--path", "/data/with space"]


def test_two_backslashes_at_the_end_of_a_line_are_a_backslash_and_no_continuation() -> None:
    command = read_command(
        r"""
        command: >
          show C:\\
          next
        """
    )

    assert run_arguments(command) == ["C:\\", "next"]


def test_a_word_cut_by_a_backslash_is_joined_as_in_a_shell_script() -> None:
    command = read_command("command: >\n  show /very/long/\\\n  path\n")

    assert run_arguments(command) == ["/very/long/path"]


def test_a_literal_block_runs_line_by_line() -> None:
    assert run_arguments(read_command("command: |\n  show one\n  show two\n")) == ["one", "/", "two"]


def test_setup_and_run_are_continued_like_a_single_command() -> None:
    command = read_command(
        r"""
        command:
          setup: >
            show -r \
            requirements.txt
          run: >
            show main.py \
            --model resnet50
        """
    )

    assert isinstance(command, SetupAndRun)
    assert command.setup is not None
    assert run_arguments(command.setup) == ["-r", "requirements.txt"]
    assert run_arguments(command.run) == ["main.py", "--model", "resnet50"]


def test_an_aliased_command_is_continued_too() -> None:
    command = read_command(
        r"""
        command:
          setup: &line >
            show main.py \
            --model resnet50
          run: *line
        """
    )

    assert isinstance(command, SetupAndRun)
    assert run_arguments(command.run) == ["main.py", "--model", "resnet50"]


def test_a_folded_name_or_variable_keeps_its_backslash_and_space() -> None:
    template = load_template(
        "vm: local\nnum_devices: 1\nname: >\n  a \\\n  b\njob_setting:\n  type: custom\n  docker:\n"
        "    command: 'true'\n    env_var:\n      GREETING: >-\n        hello \\\n        world\n"
    )

    assert template.spec.name == "a \\ b"
    assert template.spec.job_setting.docker.env_var == {"GREETING": "hello \\ world"}


def test_a_python_command_is_taken_as_it_is_but_for_the_ends() -> None:
    assert DockerSpec(command="\n  echo a \\\n  b \\\n").command == "echo a \\\n  b"


@pytest.mark.parametrize(
    "command", ["''", "' '", "\\", "|\n", "{run: ''}", "{setup: 'true'}", "{}", "[python, main.py]"]
)
def test_a_command_must_not_be_empty_or_a_list(command: str) -> None:
    with pytest.raises(TemplateError, match=r"^pf-template\.yml:[67]:\d+: job_setting\.docker\.command"):
        read_command(f"command: {command}\n")
