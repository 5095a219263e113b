"""``cluster doctor``: what may be wrong with a cluster, from the account to the programs on its head."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from periflow_ray.cli.cluster_making import show_findings
from periflow_ray.cli.complete import complete_cluster
from periflow_ray.cli.options import storage_option
from periflow_ray.cli.output import talk_console
from periflow_ray.cluster.providers.provider import Finding
from periflow_ray.errors import ClusterError

if TYPE_CHECKING:
    from periflow_ray.cluster.records import ClusterRecord
    from periflow_ray.store.root import StorageRoot

# The head's program writes the account six times a minute.
_SILENT_S = 90.0
_VERSIONS = (
    "import ray, platform, periflow_ray; print(ray.__version__, platform.python_version(), periflow_ray.__version__)"
)


@click.command("doctor")
@click.argument("name", shell_complete=complete_cluster)
@storage_option
def doctor(root: StorageRoot, name: str) -> None:
    """Look for what may be wrong with a cluster; the exit code is 1 if something is.

    \b
    Example:
      periflow-ray cluster doctor mine
    """
    from periflow_ray.cluster.records import read_cluster

    record = read_cluster(root, name)
    findings = [*_look_at_account(record), *_look_at_head(root, record)]
    show_findings(talk_console(), findings)
    bad = [finding for finding in findings if finding.verdict == "bad"]
    if bad:
        raise ClusterError(f"cluster '{name}': " + "; ".join(finding.text for finding in bad))
    click.echo(f"Nothing is wrong with cluster '{name}' as far as can be seen.")


def _look_at_account(record: ClusterRecord) -> Iterator[Finding]:
    from periflow_ray.cluster.config.spec import build_spec
    from periflow_ray.cluster.providers import open_provider
    from periflow_ray.plan.catalogue import find_vm

    provider = open_provider(record.cloud, record.region)
    spec = build_spec(record.name, [find_vm(vm) for vm in record.vm_names], max_num_nodes=record.max_num_nodes)
    yield from provider.check(spec, is_new=False)
    for machine in provider.list_machines(record.name):
        is_well = machine.setup in ("", "up-to-date")
        text = f"{machine.id}, {machine.state}, {machine.setup or 'not set up by Ray yet'}"
        has_failed = machine.setup == "update-failed"
        yield Finding(machine.node_type, "good" if is_well else "bad" if has_failed else "warning", text)


def _look_at_head(root: StorageRoot, record: ClusterRecord) -> Iterator[Finding]:
    from periflow_ray.cluster.records import read_account
    from periflow_ray.cluster.secrets import find_secrets
    from periflow_ray.cluster.ssh import run_on_head
    from periflow_ray.submit.clusters import connect_to_cluster

    secrets = find_secrets(root.uri, record.name)
    try:
        words = run_on_head(record, secrets, ["python", "-"], stdin=_VERSIONS).split()
        yield Finding("SSH", "good", f"the head answers at {record.head_address}")
        ray_version, python_version, own_version = words[-3:]
        yield from _compare_versions(ray_version, python_version, own_version)
        connect_to_cluster(root, record.name).check()
        yield Finding("Ray", "good", "its Jobs API takes the cluster's token")
    except ClusterError as err:
        yield Finding("head", "bad", str(err))
    account = read_account(root, record.name)
    if account is None:
        yield Finding("warden", "bad", "the head has not written the cluster's account; cluster logs NAME --of warden")
    else:
        silent_s = time.time() - account.seen_unix_s
        text = f"the head wrote the account {silent_s:.0f} s ago"
        yield Finding("warden", "good" if silent_s < _SILENT_S else "bad", text)
        yield from (Finding("waits", "warning", text) for text in account.waits)


def _compare_versions(ray_version: str, python_version: str, own_version: str) -> Iterator[Finding]:
    from importlib.metadata import version

    from periflow_ray import __version__

    for subject, there, here in (
        ("Ray's version", ray_version, version("ray")),
        ("periflow-ray's version", own_version, __version__),
    ):
        yield Finding(subject, "good" if there == here else "warning", f"{there} on the head, {here} here")
    yield Finding("Python's version", "good", f"{python_version} on the head")
