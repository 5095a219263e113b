"""``cluster ssh``, ``cluster tunnel`` and ``cluster logs``: on and to the head of a cluster."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.choice import Choice
from periflow_ray.cli.complete import complete_cluster
from periflow_ray.cli.options import storage_option
from periflow_ray.cli.output import talk_console
from periflow_ray.cli.plain_text import escape_line
from periflow_ray.errors import ClusterError

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

_POLL_S = 1.0
_RAY_LOGS = "/tmp/ray/session_latest/logs"
_HEAD_LOGS = {
    "autoscaler": f"{_RAY_LOGS}/monitor.log",
    "setup": f"{_RAY_LOGS}/monitor.out",
    "notices": "periflow-ray/watcher.log",
    "warden": "periflow-ray/warden.log",
}


@click.command("ssh", context_settings={"ignore_unknown_options": True})
@click.argument("name", shell_complete=complete_cluster)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@storage_option
def ssh(root: StorageRoot, name: str, command: tuple[str, ...]) -> None:
    """Open a shell on a cluster's head, or run a command there.

    \b
    Examples:
      periflow-ray cluster ssh mine
      periflow-ray cluster ssh mine -- ray status
    """
    from periflow_ray.cluster.records import read_cluster
    from periflow_ray.cluster.secrets import find_secrets
    from periflow_ray.cluster.ssh import in_login_shell, ssh_command

    argv = ssh_command(read_cluster(root, name), find_secrets(root.uri, name), *(() if command else ("-t",)))
    if command:
        argv.append(in_login_shell(command))
    os.execvp(argv[0], argv)


@click.command("tunnel")
@click.argument("name", shell_complete=complete_cluster)
@click.option("--port", "local_port", type=int, default=8265, show_default=True, help="Port of this machine.")
@storage_option
def tunnel(root: StorageRoot, name: str, local_port: int) -> None:
    """Keep a cluster's dashboard and Jobs API at a port of this machine, until Ctrl-C.

    The other commands need none: they take the cluster's name and open a tunnel of their own.

    \b
    Example:
      periflow-ray cluster tunnel mine     # then http://127.0.0.1:8265
    """
    from periflow_ray.cluster.records import read_cluster
    from periflow_ray.cluster.secrets import find_secrets
    from periflow_ray.cluster.ssh import Tunnel

    secrets = find_secrets(root.uri, name)
    opened = Tunnel(read_cluster(root, name), secrets, local_port=local_port)
    click.echo(
        f"{opened.address} is the dashboard of cluster '{name}'. Its token: RAY_AUTH_TOKEN_PATH={secrets.token_path}"
    )
    try:
        while opened.is_open:
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return
    finally:
        opened.close()
    raise ClusterError(f"the tunnel to cluster '{name}' broke. Is it up? periflow-ray cluster status {name}")


@click.command("logs")
@click.argument("name", shell_complete=complete_cluster)
@click.option(
    "--of",
    "subject",
    type=Choice(["up", *_HEAD_LOGS]),
    default="setup",
    show_default=True,
    help="up: making the head. setup: setting up each worker. autoscaler: launches and their refusals. notices: the "
    "clouds' words. warden: cost and automatic end.",
)
@click.option("--node", metavar="ADDRESS", help="Only lines about this node, by its private address.")
@click.option(
    "-n", "--lines", "num_lines", type=click.IntRange(min=1), default=200, show_default=True, help="Only the last ones."
)
@storage_option
def logs(root: StorageRoot, name: str, subject: str, node: str | None, num_lines: int) -> None:
    """Show how a cluster's nodes were made and set up.

    \b
    Examples:
      periflow-ray cluster logs mine --of up
      periflow-ray cluster logs mine --node 172.31.0.5
    """
    from periflow_ray.cluster.records import read_cluster
    from periflow_ray.cluster.secrets import find_secrets
    from periflow_ray.cluster.ssh import run_on_head

    record, secrets = read_cluster(root, name), find_secrets(root.uri, name)
    if subject == "up":
        path = secrets.directory / "up.log"
        if not path.is_file():
            raise ClusterError(f"the log of 'cluster up' is on the machine that made the cluster: {record.created_on}")
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        text = run_on_head(record, secrets, ["tail", "-n", "100000", _HEAD_LOGS[subject]])
    lines = [line for line in text.splitlines() if node is None or node in line]
    if not lines:
        talk_console().print(f"There is no line{'' if node is None else f' about {node}'} yet.")
    click.echo("\n".join(map(escape_line, lines[-num_lines:])))
