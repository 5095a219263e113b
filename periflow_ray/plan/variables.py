"""Which of our own environment variables are for people, and so reach the user's processes."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIX = "PERIFLOW_"
# The README's table of variables. Every other name with our prefix is what processes of a job tell each other: a new
# one is internal until it is added here.
PUBLIC_VARIABLES = frozenset(
    {
        "PERIFLOW_STORAGE",
        "PERIFLOW_STORAGE_CREDENTIAL",
        "PERIFLOW_CLUSTERS_DIR",
        "PERIFLOW_CLUSTER_WHEELS",
        "PERIFLOW_SSH_FROM",
        "PERIFLOW_CREDENTIALS_FILE",
        "PERIFLOW_CONTAINER_ENGINE",
        "PERIFLOW_STORAGE_TIMEOUT_S",
        "PERIFLOW_CACHE_DIR",
        "PERIFLOW_CACHE_MAX_BYTES",
        "PERIFLOW_METADATA_ENDPOINT",
        "PERIFLOW_SLACK_API",
        "PERIFLOW_LOCAL_CLUSTER_DIR",
        "PERIFLOW_LOCAL_IDLE_S",
        "PERIFLOW_BEGIN_ANEW",
        "PERIFLOW_TRUST_EXIT_CODE",
    }
)

# Of these the ones that a job's driver itself reads: on a cluster that another shell started it gets this shell's.
DRIVER_VARIABLES = ("PERIFLOW_SLACK_API", "PERIFLOW_STORAGE_TIMEOUT_S")


def drop_internal_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without those of our variables that nobody sets by hand."""
    return {name: value for name, value in environ.items() if name in PUBLIC_VARIABLES or not name.startswith(_PREFIX)}
