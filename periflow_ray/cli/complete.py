"""Values that a shell completes: names of what the storage root has, VM types, metrics. A mistake completes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from periflow_ray.errors import PeriflowRayError

if TYPE_CHECKING:
    from periflow_ray.store.root import StorageRoot

STORAGE_KEY = "periflow_ray.completed_storage"
"""Where ``--storage`` is kept in a context whose command line is only being completed."""
CREDENTIAL_KEY = "periflow_ray.storage_credential"

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completer(find: Callable[[click.Context], Iterable[tuple[str, str]]]) -> Completer:
    """A click completer of pairs of a value and a word about it, of which those are offered that begin as typed."""

    @functools.wraps(find)
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(value, help=about) for value, about in find(ctx) if value.startswith(incomplete)]
        except (PeriflowRayError, OSError):
            # A message would stand in the middle of the line that somebody types.
            return []

    return complete


@_completer
def complete_vm(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """VM types."""
    from periflow_ray.plan.catalogue import load_catalogue

    return [(name, vm.instance_type) for name, vm in load_catalogue().items()]


@_completer
def complete_region(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Regions of VM types."""
    from periflow_ray.plan.catalogue import load_catalogue

    return [(region, cloud) for region, cloud in {vm.region: vm.cloud for vm in load_catalogue().values()}.items()]


@_completer
def complete_device(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Accelerators of VM types."""
    from periflow_ray.plan.catalogue import load_catalogue

    return [(device, "") for device in dict.fromkeys(vm.accelerator for vm in load_catalogue().values())]


@_completer
def complete_credential_type(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Types of credentials."""
    from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES

    return [(name, "") for name in CREDENTIAL_TYPES]


@_completer
def complete_job_name(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Names of jobs."""
    from periflow_ray.jobs.job_names import list_records

    records = list_records(_open_root(ctx))
    return [(name, "") for name in dict.fromkeys(record.name for record in records if record.name)]


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and directories, for options that also take something else and are therefore no ``click.Path``."""
    return [CompletionItem(incomplete, type="file")]


@_completer
def complete_job(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Jobs: numbers, names, and ``last``."""
    from periflow_ray.jobs.job_names import LAST, list_records

    records = [record for record in list_records(_open_root(ctx)) if record.sweep is None]
    numbers = [(str(record.job_id), record.name or "") for record in records]
    names = dict.fromkeys(record.name for record in records if record.name)
    return [*numbers, *((name, "the newest of this name") for name in names), (LAST, "the newest job")]


@_completer
def complete_sweep(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Sweeps: numbers, names, and ``last``."""
    from periflow_ray.jobs.job_names import LAST, list_records
    from periflow_ray.sweeps.documents import has_sweep

    root = _open_root(ctx)
    records = [record for record in list_records(root) if record.sweep is None and has_sweep(root, record.job_id)]
    numbers = [(str(record.job_id), record.name or "") for record in records]
    names = dict.fromkeys(record.name for record in records if record.name)
    return [*numbers, *((name, "the newest of this name") for name in names), (LAST, "the newest sweep")]


@_completer
def complete_checkpoint(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """IDs of checkpoints, the newest job's first."""
    from periflow_ray.jobs.job_names import list_records
    from periflow_ray.store.checkpoints.lifecycle import list_checkpoint_names
    from periflow_ray.store.checkpoints.manifest import format_checkpoint_id

    root = _open_root(ctx)
    owners = [None, *(record.job_id for record in list_records(root))]
    return [(format_checkpoint_id(owner, name), "") for owner in owners for name in list_checkpoint_names(root, owner)]


@_completer
def complete_dataset(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Names of datasets."""
    from periflow_ray.store.datasets import list_datasets

    return [(dataset.name, dataset.uri) for dataset in list_datasets(_open_root(ctx), lambda err: None)]


@_completer
def complete_experiment(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Names of experiments."""
    from periflow_ray.jobs.experiments import list_experiments

    return [(experiment.name, "") for experiment in list_experiments(_open_root(ctx), lambda err: None)]


@_completer
def complete_metric(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Names of the metrics of the job that stands before them."""
    from periflow_ray.jobs.job_names import find_job_id
    from periflow_ray.jobs.metrics import iterate_metrics

    # Behind an option whose value is still being typed click leaves arguments where they are.
    given = ctx.params.get("job_id") or next(iter(ctx.args), None)
    if given is None:
        return []
    root = _open_root(ctx)
    metrics = iterate_metrics(root, find_job_id(root, given), rank=None)
    return [(name, "") for name in dict.fromkeys(name for metric in metrics for name in metric.values)]


@_completer
def complete_cluster(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Names of clusters."""
    from periflow_ray.cluster.records import list_clusters

    return [
        (cluster.name, cluster.status) for cluster in list_clusters(_open_root(ctx), on_unreadable=lambda err: None)
    ]


@_completer
def complete_credential(ctx: click.Context) -> Iterable[tuple[str, str]]:
    """Names of credentials."""
    from periflow_ray.credentials import list_credentials

    return [(credential.name, credential.type) for credential in list_credentials()]


def _open_root(ctx: click.Context) -> StorageRoot:
    from periflow_ray.settings import choose_root

    return choose_root(ctx.meta.get(STORAGE_KEY), ctx.meta.get(CREDENTIAL_KEY)).root
