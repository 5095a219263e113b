"""Completion of commands and of values, through a real bash where it is about bash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from support.sample_checkpoints import ID, write_sample_checkpoints
from support.terminal import open_terminal

from periflow_ray.cli.main import cli
from periflow_ray.store.root import StorageRoot

PROGRAM = Path(sys.executable).with_name("periflow-ray")


@pytest.fixture
def completed_root(sample_root: StorageRoot, tmp_path: Path) -> StorageRoot:
    write_sample_checkpoints(sample_root, tmp_path / "checkpoints")
    return sample_root


def complete(*words: str, incomplete: str = "") -> list[str]:
    """What is offered after these words."""
    completer = ShellComplete(cli, {}, "periflow-ray", "_PERIFLOW_RAY_COMPLETE")
    return [item.value for item in completer.get_completions(list(words), incomplete)]


@pytest.mark.parametrize(
    ("words", "incomplete", "offered"),
    [
        (["job", "view"], "", ["3", "2", "1", "llm [large]", "cifar-job", "last"]),
        (["job", "stop"], "ci", ["cifar-job"]),
        (["job", "list", "--job-name"], "l", ["llm [large]"]),
        (["job", "metrics", "show", "1", "--name"], "l", ["loss", "lr"]),
        (["job", "metrics", "show", "cifar-job", "--name"], "val", ["val/accuracy"]),
        (["checkpoint", "download"], "2/", [ID]),
        (["datastore", "view"], "my", ["my-cifar-100"]),
        (["dataset", "delete"], "", ["my-cifar-100"]),
        (["experiment", "view"], "v", ["vision"]),
        (["submit", "--experiment"], "v", ["vision"]),
        (["vm", "list", "--device"], "H2", ["H200"]),
        (["job", "list", "--status"], "s", ["success", "stopping", "stopped"]),
        (["sweep", "view"], "", ["last"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_values_are_completed(completed_root, words, incomplete, offered):
    assert complete(*words, incomplete=incomplete) == offered


@pytest.mark.parametrize(
    "words", [["submit", "-f", "x", "-v"], ["cluster", "up", "--vm"], ["job", "resume", "1", "--vm"]]
)
def test_vm_types_are_completed(words):
    offered = complete(*words, incomplete="aws-80gb-h100-8g-us-east-")
    assert set(offered) >= {"aws-80gb-h100-8g-us-east-1", "aws-80gb-h100-8g-us-east-2-spot"}


def test_values_are_those_of_the_storage_root_that_the_line_names(completed_root, tmp_path):
    assert complete("job", "view", "--storage", str(tmp_path / "other")) == ["last"]
    assert complete("job", "view", "--storage", "nonsense://x") == []


def find_parameters(command: click.Command, path: str = ""):
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            yield from find_parameters(command.get_command(ctx, name), f"{path} {name}".strip())
    else:
        yield from ((path, parameter) for parameter in command.params)


def test_every_argument_that_names_something_is_completed():
    names = ("job_id", "sweep_id", "checkpoint_id", "vm", "vm_name", "vm_names", "experiment", "credential")
    without = [
        (path, parameter.name)
        for path, parameter in find_parameters(cli)
        if parameter.name in names and parameter._custom_shell_complete is None
    ]
    assert without == []


def test_a_real_bash_completes_files_and_values(completed_root, tmp_path, monkeypatch):
    (tmp_path / "my-template.yml").touch()
    (tmp_path / "my-workspace").mkdir()
    monkeypatch.chdir(tmp_path)
    env = {**os.environ, "PS1": "ready> ", "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "HISTFILE": ""}
    with open_terminal(["bash", "--norc", "--noprofile"], env) as terminal:
        terminal.type("bind 'set enable-bracketed-paste off'; source <(periflow-ray completion bash); echo so''urced\n")
        terminal.read_until("sourced\n")
        for typed, completed in (
            ("periflow-ray submit -f my-te", "submit -f my-template.yml"),
            ("periflow-ray job metrics show 1 --name los", "--name loss"),
            # Where nothing of ours fits, bash's own names of files do.
            ("pf experiment view my-te", "view my-template.yml"),
        ):
            terminal.type(f"{typed}\t")
            terminal.read_until(completed)
            terminal.type("\x15")
        terminal.type("exit\n")
        terminal.read_until()
