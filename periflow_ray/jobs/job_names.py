"""Which job a user means: by its number, by its name, or the newest one."""

from __future__ import annotations

from collections.abc import Callable

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs.records import JobRecord, read_record
from periflow_ray.names import suggest_names
from periflow_ray.store.documents import read_each
from periflow_ray.store.root import StorageRoot

LAST = "last"


def list_records(root: StorageRoot) -> list[JobRecord]:
    """What was submitted, newest first; a record that cannot be read is left out."""
    job_ids = sorted((int(name) for name in root.list_names("jobs") if name.isdigit()), reverse=True)
    return read_each(lambda job_id: read_record(root, job_id), job_ids, lambda err: None)


def find_job_id(
    root: StorageRoot,
    given: str,
    *,
    noun: str = "job",
    is_meant: Callable[[JobRecord], bool] = lambda record: record.sweep is None,
    on_several: Callable[[list[int]], None] = lambda job_ids: None,
) -> int:
    """The number of a job that a user names; a number is taken as it is, whether or not there is such a job.

    Args:
        given: a number, a name, of which the newest job is meant, or ``last``.
        noun: what messages call it.
        is_meant: which jobs a name or ``last`` may mean.
        on_several: told of all jobs of the name, the newest first, where there are several.
    Raises:
        UsageError: it can be none of these.
        NotFoundError: no job has the name, or there is none at all.
    """
    text = given.strip()
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    if not text or text.lstrip("+-").isdecimal():
        raise UsageError(
            f"'{given}' is no {noun}. Name it by its number, which is 1 or more, by its name, or as '{LAST}', the "
            f"newest {noun}. List them: periflow-ray {noun} list"
        )
    records = [record for record in list_records(root) if is_meant(record)]
    found = [record.job_id for record in records if text in (record.name, LAST)]
    if not found:
        suggestion = suggest_names(text, [*{record.name for record in records if record.name}, LAST])
        what = f"there is no {noun}" if text == LAST else f"no {noun} is called '{text}'"
        raise NotFoundError(
            f"{what} in storage root '{root.uri}'.{'' if text == LAST else suggestion} List them: periflow-ray {noun} "
            "list"
        )
    if len(found) > 1 and text != LAST:
        on_several(found)
    return found[0]
