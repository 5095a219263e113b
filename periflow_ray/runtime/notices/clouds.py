"""Which cloud this machine belongs to, and where its metadata service is."""

from __future__ import annotations

from collections.abc import Mapping

from periflow_ray.runtime.notices.aws import AwsSource
from periflow_ray.runtime.notices.azure import AzureSource
from periflow_ray.runtime.notices.gcp import GcpSource
from periflow_ray.runtime.notices.metadata import DEFAULT_ENDPOINT
from periflow_ray.runtime.notices.notice import MetadataError, NoticeSource

CLOUDS = ("aws", "azure", "gcp")
# Takes the place of every cloud's endpoint, for rehearsals.
ENDPOINT_VARIABLE = "PERIFLOW_METADATA_ENDPOINT"
# The variables that the clouds' own libraries read.
AWS_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
GCP_HOST_VARIABLE = "GCE_METADATA_HOST"


def make_source(cloud: str, environment: Mapping[str, str]) -> NoticeSource:
    """The source of one of CLOUDS.

    Raises:
        UsageError: an endpoint in the environment is not a plain ``http`` URL.
    """
    every_clouds = environment.get(ENDPOINT_VARIABLE)
    if cloud == "aws":
        return AwsSource(every_clouds or environment.get(AWS_ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT)
    if cloud == "azure":
        return AzureSource(every_clouds or DEFAULT_ENDPOINT)
    host = environment.get(GCP_HOST_VARIABLE)
    return GcpSource(every_clouds or (f"http://{host}" if host else DEFAULT_ENDPOINT))


def find_source(sources: list[NoticeSource]) -> NoticeSource:
    """The one of several clouds' sources whose metadata service answers here.

    Raises:
        MetadataError: none does.
    """
    for source in sources:
        if source.is_present():
            return source
    names = ", ".join(source.cloud_name for source in sources)
    raise MetadataError(f"no metadata service answers as one of {names} does")
