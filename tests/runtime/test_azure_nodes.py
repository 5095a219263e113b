"""What the node provider on Azure makes of Azure's words."""

from __future__ import annotations

import pytest
from azure.core.exceptions import HttpResponseError, ODataV4Format

from periflow_ray.runtime.head.azure_nodes import describe_refusal
from periflow_ray.runtime.launches import shorten_refusal


def make_error(*levels: tuple[str, str]) -> HttpResponseError:
    """As the SDK raises it, the outermost code and message first."""
    document: dict[str, object] = {}
    for code, message in reversed(levels):
        document = {"code": code, "message": message, "details": [document] if document else []}
    error = HttpResponseError("Operation returned an invalid status 'Conflict'")
    error.error = ODataV4Format(document)
    return error


FAILED = ("DeploymentFailed", "At least one resource deployment operation failed.")
QUOTA = (
    "QuotaExceeded",
    "Operation could not be completed as it results in exceeding\napproved quota.",
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (make_error(FAILED, ("SkuNotAvailable", "None left.")), "SkuNotAvailable: None left."),
        (
            make_error(FAILED, ("ResourceDeploymentFailure", "It failed."), QUOTA),
            "QuotaExceeded: Operation could not be completed as it results in exceeding approved quota.",
        ),
        (make_error(FAILED), "DeploymentFailed: At least one resource deployment operation failed."),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
    ],
)
def test_the_reason_of_a_refusal_is_what_is_innermost_on_one_line(error: Exception, reason: str) -> None:
    told = str(describe_refusal(error))
    assert "\n" not in told
    assert shorten_refusal(told) == reason
