"""The clouds' own APIs: what an account allows, what a cluster needs in it, and what of a cluster is left there."""

from __future__ import annotations

from periflow_ray.cluster.providers.provider import Provider


def open_provider(cloud: str, region: str) -> Provider:
    """A cloud's API for one region, with this machine's own credentials.

    Raises:
        ClusterError: the cloud's SDK is not installed, or there are no credentials.
    """
    if cloud == "azure":
        from periflow_ray.cluster.providers.azure import AzureProvider

        return AzureProvider(region)
    from periflow_ray.cluster.providers.aws import AwsProvider

    return AwsProvider(region)
