"""``cluster wheels``: what the nodes of a cluster of plain ``ray up`` are set up with."""

from __future__ import annotations

import re
from pathlib import Path

import click

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.output import talk_console
from periflow_ray.cluster.wheels import IMAGE_PYTHON, MACHINES, WantedWheels, collect_wheels
from periflow_ray.errors import UsageError
from periflow_ray.store.size_text import format_size

# periflow-ray needs Python 3.10.
_LEAST_MINOR = 10


def _check_python(context: click.Context, parameter: click.Parameter, version: str) -> str:
    if re.fullmatch(r"3\.\d+", version) is None or int(version[2:]) < _LEAST_MINOR:
        raise click.BadParameter(
            f"'{version}' is no version from 3.{_LEAST_MINOR} on. Give one such as {IMAGE_PYTHON}."
        )
    return version


@click.command("wheels")
@click.argument("packages", nargs=-1)
@click.option(
    "--dest",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("cluster_configs/wheels"),
    show_default=True,
    help="The folder; it has nothing else.",
)
@click.option(
    "--python",
    callback=_check_python,
    default=IMAGE_PYTHON,
    show_default=True,
    metavar="VERSION",
    help="The image's Python.",
)
@click.option(
    "--machine",
    "machines",
    type=Choice(MACHINES),
    multiple=True,
    default=MACHINES[:1],
    show_default=True,
    help="The nodes' processor; may be repeated.",
)
@click.option("--torch", "has_torch", is_flag=True, help="PyTorch too, which GPU images mostly have (gigabytes).")
@click.option("--only-own", is_flag=True, help="Nothing but periflow-ray, for images that have the rest.")
def wheels(
    packages: tuple[str, ...], dest: Path, python: str, machines: tuple[str, ...], has_torch: bool, only_own: bool
) -> None:
    """Collect the wheels of periflow-ray, of what it needs and of PACKAGES of your own, for 'ray up'.

    'cluster up' does it by itself.

    \b
    Examples:
      periflow-ray cluster wheels
      periflow-ray cluster wheels --torch transformers 'datasets>=3'
    """
    if only_own and packages:
        raise UsageError("--only-own is for nothing but periflow-ray; leave it out to have packages of your own.")
    wanted = WantedWheels(python, machines, packages, has_torch, has_needs=not only_own)
    collect_wheels(dest, wanted, talk_console().print)
    sizes = [path.stat().st_size for path in dest.glob("*.whl")]
    click.echo(f"{dest}: {len(sizes)} {'wheel' if len(sizes) == 1 else 'wheels'}, {format_size(sum(sizes))}")
