"""``cluster list`` and ``cluster status``: what there is, what it does, what it costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from periflow_ray.cli.complete import complete_cluster
from periflow_ray.cli.format import NOTHING, format_duration, format_time, iso_time
from periflow_ray.cli.options import storage_option
from periflow_ray.cli.output import output_option, tell_empty, tell_left_out, write_output
from periflow_ray.cli.tables import build_fields, draw_panels, draw_table
from periflow_ray.cluster.providers.prices import machine_usd_per_hour

if TYPE_CHECKING:
    from periflow_ray.cluster.providers.provider import Machine
    from periflow_ray.cluster.records import ClusterAccount, ClusterRecord
    from periflow_ray.store.root import StorageRoot


@click.command("list")
@click.option("-a", "--all", "shows_all", is_flag=True, help="Also clusters that have ended.")
@storage_option
@output_option
def list_command(root: StorageRoot, shows_all: bool, output: str) -> None:
    """List clusters, newest first, as their heads said last.

    \b
    Example:
      periflow-ray cluster list
    """
    from periflow_ray.cluster.records import list_clusters, read_account

    records = [record for record in list_clusters(root, tell_left_out) if shows_all or record.status != "ended"]
    found = [(record, read_account(root, record.name)) for record in records]

    def draw(console: Console) -> None:
        columns = ["Name", "Status", "Region", "VM types", "Machines", "Per hour", "Cost", "Made"]
        if found:
            rows = [_row(record, account) for record, account in found]
            dropped_first = ("Made", "Region", "Machines", "Cost", "Per hour")
            draw_table(console, columns, rows, text_column="Status", dropped_first=dropped_first)

    write_output(output, [_document(record, account) for record, account in found], draw)
    if not found:
        tell_empty(root, "clusters that are up", "periflow-ray cluster up --vm NAME")


@click.command("status")
@click.argument("name", shell_complete=complete_cluster)
@storage_option
@output_option
def status(root: StorageRoot, name: str, output: str) -> None:
    """Show a cluster: its machines as the provider has them, what it waits for and why, and its cost.

    \b
    Example:
      periflow-ray cluster status aws-24gb-a10g-1g-us-east-1
    """
    from periflow_ray.cluster.providers import open_provider
    from periflow_ray.cluster.records import ClusterAccount, read_account, read_cluster

    record = read_cluster(root, name)
    account = read_account(root, name) or ClusterAccount(record.created_unix_s)
    machines = [] if record.status == "ended" else open_provider(record.cloud, record.region).list_machines(name)

    def draw(console: Console) -> None:
        fields = {
            "Status": _describe_status(record, account),
            "Region": f"{record.region} ({record.cloud})",
            "VM types": ", ".join(record.vm_names),
            "Workers": f"at most {record.max_num_nodes}; an idle one ends after {record.idle_timeout_minutes} minutes",
            "Head": record.head_address or NOTHING,
            "Made": f"{format_time(record.created_unix_s)} by {record.created_by} on {record.created_on}",
            "Ends": _describe_limits(record),
            "Cost": f"${account.cost_usd:.2f} until {format_time(account.seen_unix_s)}, and "
            f"${_usd_per_hour(machines):.2f} per hour now",
        }
        panels: dict[str, Any] = {f"Cluster {name}": build_fields(fields)}
        if account.waits:
            panels["Waits"] = "\n".join(account.waits)
        draw_panels(console, panels)
        columns = ["Machine", "Node type", "State", "Setup", "Zone", "Address", "Up for", "Per hour"]
        rows = [_machine_row(machine) for machine in machines]
        dropped_first = ("Node type", "Up for", "Zone", "Setup")
        draw_table(console, columns, rows, text_column="State", dropped_first=dropped_first)

    document = {**_document(record, account), "machines": [_machine_document(machine) for machine in machines]}
    document["usd_per_hour"] = _usd_per_hour(machines)
    write_output(output, document, draw)


def _row(record: ClusterRecord, account: ClusterAccount | None) -> list[str]:
    uses = [] if account is None else _now_in_use(account)
    return [
        record.name,
        _describe_status(record, account),
        f"{record.region} ({record.cloud})",
        ", ".join(record.vm_names),
        str(len(uses)),
        f"${sum(use.usd_per_hour for use in uses):.2f}",
        NOTHING if account is None else f"${account.cost_usd:.2f}",
        format_time(record.created_unix_s),
    ]


def _describe_status(record: ClusterRecord, account: ClusterAccount | None) -> str:
    if record.status == "running" and account is not None and account.ended_because is not None:
        return f"ended by itself: {account.ended_because}; what costs nothing goes with 'cluster down {record.name}'"
    return record.status


def _describe_limits(record: ClusterRecord) -> str:
    limits = []
    if record.autostop_s is not None:
        limits.append(f"when no job has run for {format_duration(record.autostop_s)}")
    if record.max_cost_usd is not None:
        limits.append(f"when it has cost ${record.max_cost_usd:.2f}")
    return " or ".join(limits) or "by 'cluster down' alone"


def _now_in_use(account: ClusterAccount) -> list[Any]:
    """The machines of the account's last look."""
    if account.ended_because is not None:
        return []
    return [use for use in account.machines.values() if use.seen_unix_s == account.seen_unix_s]


def _usd_per_hour(machines: list[Machine]) -> float:
    return sum(machine_usd_per_hour(machine) for machine in machines)


def _machine_row(machine: Machine) -> list[str]:
    return [
        machine.id,
        machine.node_type or NOTHING,
        machine.state + (f": {machine.reason}" if machine.reason else ""),
        machine.setup or NOTHING,
        machine.zone or NOTHING,
        machine.public_address or machine.address or NOTHING,
        format_duration(time.time() - machine.launched_unix_s),
        f"${machine_usd_per_hour(machine):.2f}",
    ]


def _document(record: ClusterRecord, account: ClusterAccount | None) -> dict[str, Any]:
    return {
        "name": record.name,
        "status": record.status,
        "cloud": record.cloud,
        "region": record.region,
        "vms": record.vm_names,
        "max_nodes": record.max_num_nodes,
        "head_address": record.head_address,
        "created_at": iso_time(record.created_unix_s),
        "created_by": record.created_by,
        "created_on": record.created_on,
        "autostop_s": record.autostop_s,
        "max_cost_usd": record.max_cost_usd,
        "cost_usd": None if account is None else account.cost_usd,
        "cost_until": None if account is None else iso_time(account.seen_unix_s),
        "waits": [] if account is None else account.waits,
        "ended_because": None if account is None else account.ended_because,
    }


def _machine_document(machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "node_type": machine.node_type,
        "instance_type": machine.instance_type,
        "is_spot": machine.is_spot,
        "state": machine.state,
        "setup": machine.setup,
        "reason": machine.reason,
        "zone": machine.zone,
        "address": machine.address,
        "public_address": machine.public_address,
        "launched_at": iso_time(machine.launched_unix_s),
        "usd_per_hour": machine_usd_per_hour(machine),
    }
