"""The documents of a sweep, which is a job whose driver runs other jobs, its trials.

jobs/<sweep>/sweep.json             what was asked for
jobs/<sweep>/journal/<segment>      what happened, a line each; see ``journal``
jobs/<sweep>/trials/<id>.json       which job is the trial that Ray Tune calls so
tune/<id>.json                      the same of a trial that a user's own Tuner runs
"""

from __future__ import annotations

from dataclasses import dataclass

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.store.documents import read_document, write_document, write_private_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class TrialPlace:
    """Where a trial of Ray Tune is kept.

    Args:
        number: of the trial in its sweep, from 1.
        job_id: the job that it is.
    """

    number: int
    job_id: int


def write_sweep(root: StorageRoot, sweep_id: int, spec: SweepSpec) -> None:
    """Store what was asked for."""
    write_private_document(root, job_key(sweep_id, "sweep.json"), spec)


def has_sweep(root: StorageRoot, job_id: int) -> bool:
    """Whether a job is a sweep."""
    return root.exists(job_key(job_id, "sweep.json"))


def read_sweep(root: StorageRoot, sweep_id: int) -> SweepSpec:
    """What was asked for.

    Raises:
        UsageError: there is no such sweep.
        DocumentError: it cannot be read.
    """
    try:
        return read_document(root, job_key(sweep_id, "sweep.json"), SweepSpec)
    except NotFoundError:
        raise UsageError(
            f"there is no sweep {sweep_id} in storage root '{root.uri}'. List them: periflow-ray sweep list"
        ) from None


def write_place(root: StorageRoot, sweep_id: int, tune_id: str, place: TrialPlace) -> None:
    """Tell where the trial is that Ray Tune calls ``tune_id``."""
    write_document(root, job_key(sweep_id, "trials", f"{tune_id}.json"), place)


def read_place(root: StorageRoot, sweep_id: int, tune_id: str) -> TrialPlace:
    """Where a trial of Ray Tune is kept.

    Raises:
        NotFoundError: nobody has told.
    """
    return read_document(root, job_key(sweep_id, "trials", f"{tune_id}.json"), TrialPlace)


@dataclass(frozen=True)
class LonePlace:
    """The job that a trial of a user's own Tuner is."""

    job_id: int


def write_lone_place(root: StorageRoot, tune_id: str, place: LonePlace) -> None:
    """Tell which job is the trial that a user's own Tuner calls ``tune_id``."""
    write_document(root, f"tune/{tune_id}.json", place)


def find_lone_place(root: StorageRoot, tune_id: str) -> LonePlace | None:
    """The job of a trial of a user's own Tuner; None if nobody has told."""
    try:
        return read_document(root, f"tune/{tune_id}.json", LonePlace)
    except NotFoundError:
        return None
