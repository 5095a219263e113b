"""Fixtures of the clusters' tests: an AWS account on loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from support.aws_account import AwsAccount, serve_aws

from periflow_ray.cluster.providers.aws import AwsProvider


@pytest.fixture(scope="session")
def _aws_server() -> Iterator[AwsAccount]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serve_aws() as account:
        yield account


@pytest.fixture
def aws(_aws_server: AwsAccount, monkeypatch: pytest.MonkeyPatch) -> AwsAccount:
    """An account with nothing in it but the default network, and this process has its credentials."""
    _aws_server.reset()
    for name, value in _aws_server.environment.items():
        monkeypatch.setenv(name, value)
    return _aws_server


@pytest.fixture(scope="session")
def _aws_provider(_aws_server: AwsAccount) -> AwsProvider:
    # One for all tests: it reads a description of all of EC2, which takes a second.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _aws_server.environment.items():
            patch.setenv(name, value)
        return AwsProvider("us-east-1")


@pytest.fixture
def aws_provider(aws: AwsAccount, _aws_provider: AwsProvider) -> AwsProvider:
    """The product's own look at that account."""
    return _aws_provider
