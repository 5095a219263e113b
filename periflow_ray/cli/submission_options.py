"""The options of the commands that submit a template: ``submit`` and ``sweep run``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from periflow_ray.cli.complete import complete_cluster, complete_experiment, complete_vm
from periflow_ray.cli.duration import duration_callback
from periflow_ray.cli.options import upload_bandwidth_option


@dataclass(frozen=True)
class SubmissionOptions:
    """The options of a command that submits a template, by the names of their arguments."""

    config_file: str
    workspace_dir: Path | None
    name: str | None
    vm_names: tuple[str, ...]
    experiment: str | None
    num_devices: int | None
    is_local: bool
    devices_per_node: int | None
    address: str | None
    env_assignments: tuple[str, ...]
    env_files: tuple[Path, ...]
    secret_names: tuple[str, ...]
    upload_bandwidth_bytes_per_s: int | None
    fsync: bool
    wait_s: float | None
    use_image: bool | None
    makes_cluster: bool


_OPTIONS = (
    click.option(
        "-f",
        "--config-file",
        required=True,
        # For the shell's completion; whether it can be read is said when it is read.
        type=click.Path(allow_dash=True),
        metavar="FILE",
        help="The template, usually pf-template.yml; - is standard input.",
    ),
    click.option("-d", "-w", "--workspace-dir", type=click.Path(path_type=Path), help="Directory with your script."),
    click.option("-n", "--name", help="Name of the job."),
    click.option(
        "-v",
        "--vm",
        "vm_names",
        multiple=True,
        shell_complete=complete_vm,
        help="VM type; given several times, the first one that the cloud has. List them: periflow-ray vm list",
    ),
    click.option("-e", "--experiment", shell_complete=complete_experiment, help="Experiment to put the job in."),
    click.option("--num-devices", type=int, help="Devices of the whole job."),
    click.option(
        "--local", "is_local", is_flag=True, help="Run on this machine, on an embedded Ray cluster (VM 'local')."
    ),
    click.option(
        "--devices-per-node",
        type=click.IntRange(min=1),
        help="With --local: devices of each stand-in node.  [default: 1 on CPU, all GPUs where there are some]",
    ),
    click.option(
        "--address",
        shell_complete=complete_cluster,
        help="Running Ray cluster: its name (periflow-ray cluster list) or http://HOST:8265.  [default: $RAY_ADDRESS, "
        "else a cluster that has the VM type]",
    ),
    click.option(
        "--env", "env_assignments", multiple=True, metavar="K=V|K", help="Variable for the command; K: as set here."
    ),
    click.option(
        "--env-file", "env_files", multiple=True, type=click.Path(path_type=Path), help="File with K=V lines."
    ),
    click.option(
        "--secret",
        "secret_names",
        multiple=True,
        metavar="K",
        help="As --env K, but never shown or stored in the clear.",
    ),
    upload_bandwidth_option,
    click.option(
        "--fsync/--no-fsync",
        default=True,
        show_default=True,
        help="In a storage root that is a folder, commit checkpoints that outlive a loss of power.",
    ),
    click.option(
        "--wait",
        "wait_s",
        metavar="TIME",
        callback=duration_callback,
        help="Fail if the machines are not there after this time: 20m.  [default: wait forever]",
    ),
    click.option(
        "--require-image/--no-image",
        "use_image",
        default=None,
        help="Fail where the template's image cannot be used; or do without it.  [default: use it on nodes that have "
        "Docker or Podman, and on this machine if it is there]",
    ),
    click.option(
        "--up", "makes_cluster", is_flag=True, help="Make a cluster for the VM type if none is up; see cluster up."
    ),
)


def submission_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets them as one argument, ``given``."""
    names = [each.name for each in dataclasses.fields(SubmissionOptions)]

    @functools.wraps(command)
    def collect(**arguments: Any) -> None:
        given = SubmissionOptions(**{name: arguments.pop(name) for name in names})
        command(given=given, **arguments)

    for option in reversed(_OPTIONS):
        collect = option(collect)
    return collect
