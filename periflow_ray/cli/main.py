"""Entry point of ``periflow-ray`` and ``pf``: the commands, and how every error reaches the user."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from periflow_ray import __version__
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.plain_text import escape_controls
from periflow_ray.cli.price_copy import apply_price_copy, price_copy_path
from periflow_ray.errors import JobStoppedError, PeriflowRayError

INTERRUPTED_EXIT_CODE = 130

COMMANDS = {
    "submit": ("periflow_ray.cli.submit:submit", "Run a pf-template.yml as a job."),
    "job": ("periflow_ray.cli.job:job", "Run, list, view, stop and delete jobs; their logs and metrics."),
    "sweep": ("periflow_ray.cli.sweep:sweep", "Hyperparameter sweeps over a template's job."),
    "vm": ("periflow_ray.cli.vm:vm", "VM types that a template may name."),
    "cluster": ("periflow_ray.cli.cluster:cluster", "Ray clusters on AWS and Azure."),
    "local": ("periflow_ray.cli.local:local", "The embedded Ray cluster of this machine."),
    "experiment": ("periflow_ray.cli.experiment:experiment", "Named groups of jobs."),
    "datastore": ("periflow_ray.cli.datastore:datastore", "Datasets that jobs read."),
    "dataset": ("periflow_ray.cli.datastore:datastore", "The same as datastore."),
    "credential": ("periflow_ray.cli.credential:credential", "Keys of clouds and services, by name."),
    "checkpoint": ("periflow_ray.cli.checkpoint:checkpoint", "Checkpoints: list, download, verify, delete."),
    "completion": ("periflow_ray.cli.completion:completion", "Print the shell completion script."),
}


class RootGroup(LazyGroup):
    """The top command: every error ends as ``Error: message`` on standard error and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            exit_code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.Abort as abort:
            sys.exit(_describe_abort(abort))
        except click.ClickException as err:
            err.show()
            sys.exit(err.exit_code)
        except JobStoppedError as err:
            # What somebody wanted is no error.
            click.echo(escape_controls(str(err)), err=True)
            sys.exit(err.exit_code)
        except PeriflowRayError as err:
            click.echo(escape_controls(f"Error: {err}"), err=True)
            sys.exit(err.exit_code)
        except BrokenPipeError:
            # The reader of our output has gone (``| head``); without this Python complains again while it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as err:
            # A file or a storage root of the user's that cannot be read or written.
            click.echo(escape_controls(f"Error: {err}"), err=True)
            sys.exit(1)
        sys.exit(exit_code if isinstance(exit_code, int) else 0)


@click.group(
    cls=RootGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="periflow-ray")
def cli() -> None:
    """Run PyTorch training jobs, described by a pf-template.yml, on your own Ray cluster.

    \b
    Example:
      periflow-ray submit --local -f pf-template.yml -d ./cifar
      periflow-ray job view 1
    """


def main() -> NoReturn:
    """Run the command line of this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end the command.
        with contextlib.suppress(io.UnsupportedOperation):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
    if price_copy_path().exists():
        apply_price_copy()
    name = Path(sys.argv[0]).name
    cli.main(prog_name="periflow-ray" if name == "main.py" else name)
    raise AssertionError("cli.main always exits")


def _describe_abort(abort: click.Abort) -> int:
    """Say why a command was given up; returns its exit code."""
    # click raises Abort for Ctrl-C, for the end of input, and for a "no" to its own questions.
    cause = abort.__cause__ or abort.__context__
    if isinstance(cause, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED_EXIT_CODE
    if isinstance(cause, EOFError):
        click.echo("\nError: the input ended before every question was answered.", err=True)
        return 1
    click.echo("Nothing was changed.", err=True)
    return 1


if __name__ == "__main__":
    main()
