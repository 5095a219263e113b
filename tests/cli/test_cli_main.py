from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from periflow_ray import __version__
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.main import cli
from periflow_ray.store.root import StorageRoot

MODULE = [sys.executable, "-m", "periflow_ray.cli.main"]


def find_commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """Every command below a group by its words, groups included."""
    context = click.Context(group)
    commands: dict[str, click.Command] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        commands[" ".join((*path, name))] = command
        if isinstance(command, click.Group):
            commands |= find_commands(command, (*path, name))
    return commands


def test_every_command_of_the_contract_exists():
    assert sorted(find_commands(cli)) == [
        "checkpoint",
        "checkpoint create",
        "checkpoint delete",
        "checkpoint download",
        "checkpoint list",
        "checkpoint undelete",
        "checkpoint upload",
        "checkpoint verify",
        "checkpoint view",
        "cluster",
        "cluster doctor",
        "cluster down",
        "cluster list",
        "cluster logs",
        "cluster render",
        "cluster ssh",
        "cluster status",
        "cluster tunnel",
        "cluster up",
        "cluster wheels",
        "completion",
        "credential",
        "credential create",
        "credential delete",
        "credential edit",
        "credential list",
        "credential view",
        "dataset",
        "dataset create",
        "dataset delete",
        "dataset edit",
        "dataset list",
        "dataset upload",
        "dataset view",
        "datastore",
        "datastore create",
        "datastore delete",
        "datastore edit",
        "datastore list",
        "datastore upload",
        "datastore view",
        "experiment",
        "experiment create",
        "experiment delete",
        "experiment edit",
        "experiment list",
        "experiment view",
        "job",
        "job delete",
        "job drill",
        "job events",
        "job list",
        "job log",
        "job metrics",
        "job metrics list",
        "job metrics show",
        "job resume",
        "job run",
        "job schema",
        "job stop",
        "job template",
        "job template create",
        "job tensorboard",
        "job view",
        "local",
        "local status",
        "local stop",
        "submit",
        "sweep",
        "sweep best",
        "sweep delete",
        "sweep export",
        "sweep list",
        "sweep plot",
        "sweep resume",
        "sweep retry",
        "sweep run",
        "sweep stop",
        "sweep view",
        "vm",
        "vm list",
        "vm refresh",
    ]


def test_every_help_text_has_an_example():
    without = [
        words
        for words, command in find_commands(cli).items()
        if "\b\nExample" not in inspect.cleandoc(command.help or "")
    ]
    assert without == []


def test_every_option_has_a_help_text():
    without = [
        (words, option.name)
        for words, command in find_commands(cli).items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert without == []


def test_job_run_and_submit_are_one_command_and_so_are_dataset_and_datastore():
    commands = find_commands(cli)
    assert commands["job run"] is commands["submit"]
    assert commands["dataset"] is commands["datastore"]


@pytest.mark.parametrize("arguments", [["--help"], ["job", "-h"], ["vm", "list"], ["job", "metrics", "-h"]])
def test_help_and_vm_list_import_nothing_heavy(arguments):
    heavy = {"ray", "torch", "pydantic", "fsspec", "yaml", "matplotlib"}
    if arguments[:2] == ["job", "metrics"]:
        heavy -= {"fsspec"}  # Its group stands in the module of its commands, which read the storage root.
    script = (
        "import sys\nfrom periflow_ray.cli.main import cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["periflow-ray", "pf"])
def test_both_installed_names_print_the_version(name):
    program = Path(sys.executable).with_name(name)
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"periflow-ray, version {__version__}\n", "")


def test_the_help_names_the_program_that_was_called():
    done = subprocess.run([Path(sys.executable).with_name("pf"), "-h"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: pf [OPTIONS] COMMAND [ARGS]...\n")
    done = subprocess.run([*MODULE, "-h"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: periflow-ray [OPTIONS] COMMAND [ARGS]...\n")


def test_an_unknown_command_names_the_nearest(run_cli):
    result = run_cli("job", "lst")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(
        "Error: no such command 'lst'. Did you mean 'list'? Commands: run, list, "
    )


def test_a_products_error_is_one_message_and_its_exit_code(root: StorageRoot):
    done = subprocess.run([*MODULE, "job", "view", "7"], capture_output=True, text=True, check=False)
    message = f"Error: job 7 does not exist in storage root '{root.uri}'. List jobs: periflow-ray job list\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_a_storage_root_that_cannot_be_opened_is_an_error_without_traceback(run_cli):
    result = run_cli("job", "list", "--storage", "nowhere://bucket")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: storage root 'nowhere://bucket' cannot be opened: ")


def test_a_file_that_cannot_be_written_is_an_error_without_traceback(run_cli, sample_root):
    result = run_cli("job", "log", "1", "-e", "/nowhere/at/all.log")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: [Errno 2] No such file or directory: '/nowhere/at/all.log'\n"


def test_a_reader_that_goes_away_is_no_traceback(sample_root):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*MODULE, "job", "log", "1"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_unicode_is_no_traceback(sample_root):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*MODULE, "datastore", "view", "my-cifar-100"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "train (1.5 kB)" in done.stdout


def test_storage_option_goes_before_the_environment(run_cli, sample_root, tmp_path):
    assert run_cli("job", "list", "-o", "json", "--storage", str(tmp_path / "other")).stdout == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_serves_both_names(run_cli, shell):
    result = run_cli("completion", shell)
    assert result.exit_code == 0
    assert "_PERIFLOW_RAY_COMPLETE" in result.stdout
    assert "_PF_COMPLETE" in result.stdout


def test_completion_completes_commands():
    program = Path(sys.executable).with_name("pf")
    environment = {**os.environ, "_PF_COMPLETE": "bash_complete", "COMP_WORDS": "pf job metrics ", "COMP_CWORD": "3"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "plain,list\nplain,show\n")


def test_lazy_commands_are_imported_one_at_a_time():
    @click.command()
    def never() -> None: ...

    group = LazyGroup("group", lazy_commands={"broken": ("no_such_module:command", "Does not exist.")})
    assert "broken  Does not exist." in group.get_help(click.Context(group))
