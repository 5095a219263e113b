"""Every error that periflow-ray raises on purpose, with the exit code the command line gives it.

Exit codes: 1 something failed, 2 the user's input is wrong (the command was not started).
A message says where, what was given, what is allowed and what to do; see ``CONTRIBUTING.md``.
All classes pickle, because they cross Ray process boundaries.
"""

from __future__ import annotations

# Stands for a secret in every message, view and log.
MASK = "***"


class PeriflowRayError(Exception):
    """Base of all errors that a user can act on; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(PeriflowRayError):
    """The command line or an argument is wrong."""

    exit_code = 2


class TemplateError(PeriflowRayError):
    """pf-template.yml has problems; the message lists all of them, one ``file:line:col`` line each."""

    exit_code = 2


class PlanError(PeriflowRayError):
    """A valid template that cannot be turned into a plan.

    Args:
        message: what is wrong, what is allowed, what to do.
        key_path: the template key at fault, for example ``("num_devices",)``; empty when no single key is.
    """

    exit_code = 2

    def __init__(self, message: str, key_path: tuple[str, ...] = ()) -> None:
        super().__init__(message, key_path)
        self.message = message
        self.key_path = key_path

    def __str__(self) -> str:
        return self.message


class WorkspaceError(PeriflowRayError):
    """The workspace directory cannot be packaged."""

    exit_code = 2


class StorageError(PeriflowRayError):
    """The storage root cannot be read or written."""


class DocumentError(StorageError):
    """A stored document, such as a job's state or a dataset's record, that this version cannot read."""


class DamagedDocumentError(DocumentError):
    """A document that was cut short, or lacks something; the message names its key."""


class NewerFormatError(DocumentError):
    """A document that a later version of periflow-ray wrote in a format that this one does not know."""


class CorruptCheckpointError(StorageError):
    """A checkpoint whose files or manifest are not what was committed; another one has to be used."""


class NotFoundError(PeriflowRayError):
    """A job, experiment, dataset or checkpoint that does not exist."""


class ClusterError(PeriflowRayError):
    """A Ray cluster cannot be reached, started or used."""


class JobFailedError(PeriflowRayError):
    """A job ended in a state other than success; the message is its diagnosis."""


class HopelessError(JobFailedError):
    """What a job cannot begin with, and what the next attempt would not find otherwise: it is not started again.

    Args:
        message: what is wrong, and what to do.
        last_lines: of the program that failed.
    """

    def __init__(self, message: str, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(message, last_lines)
        self.message = message
        self.last_lines = last_lines

    def __str__(self) -> str:
        return self.message


class JobStoppedError(JobFailedError):
    """A job that was stopped on request before its end; it can be resumed."""


class PeriFlowError(PeriflowRayError):
    """Wrong use of the SDK, for example ``metric`` before ``init``. The name is PeriFlow's own."""
