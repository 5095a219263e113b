"""What ``cluster up`` and ``cluster render`` are told of a cluster, and the cluster that it describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from periflow_ray.cli.complete import complete_vm

if TYPE_CHECKING:
    from periflow_ray.cluster.config.spec import ClusterSpec

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--name", help="The cluster's name.  [default: the first VM type's]"),
    click.option("--max-nodes", type=int, default=2, show_default=True, help="Workers at the same time."),
    click.option(
        "--idle-minutes",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="An idle worker is ended then.",
    ),
    click.option(
        "--disk-gib", type=click.IntRange(min=50), default=200, show_default=True, help="System disk of each worker."
    ),
)


def spec_options(*, needs_vm: bool) -> Callable[[Function], Function]:
    """Adds ``--vm`` as ``vm_names``, ``--name``, ``--max-nodes``, ``--idle-minutes`` and ``--disk-gib``."""
    vm = click.option(
        "--vm",
        "vm_names",
        multiple=True,
        required=needs_vm,
        metavar="NAME",
        shell_complete=complete_vm,
        help="The workers' VM type; may be given several times.",
    )

    def add(function: Function) -> Function:
        for option in reversed((vm, *_OPTIONS)):
            function = option(function)
        return function

    return add


def read_spec(
    vm_names: Sequence[str], name: str | None, max_nodes: int, idle_minutes: int, disk_gib: int
) -> ClusterSpec:
    """The cluster that the options describe.

    Raises:
        PlanError: there is no such VM type.
        UsageError: they are no cluster; see ``build_spec``.
    """
    from periflow_ray.cluster.config.spec import build_spec, suggest_name
    from periflow_ray.plan.catalogue import find_vm

    vms = [find_vm(vm_name) for vm_name in vm_names]
    return build_spec(
        name or suggest_name(vms[0]),
        vms,
        max_num_nodes=max_nodes,
        idle_timeout_minutes=idle_minutes,
        disk_gib=disk_gib,
    )
