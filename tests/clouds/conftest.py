"""A cloud in a box with a user beside it, for the tests of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.cloud.box import Box, find_missing_for_box, open_box
from support.cloud.user import make_bucket


@pytest.fixture(scope="session")
def _box_is_possible() -> None:
    missing = find_missing_for_box()
    if missing is not None:
        pytest.skip(missing)


@contextlib.contextmanager
def _open_with_user(cloud: str, region: str) -> Iterator[Box]:
    """A cloud, and a user with a checkout, a bucket and the token of a cluster."""
    with open_box(cloud, region) as box:
        box.check_out()
        make_bucket(box)
        box.write(".ray/auth_token", "box-token-7c1f0b")
        yield box


@pytest.fixture(scope="module")
def aws(_box_is_possible: None) -> Iterator[Box]:
    with _open_with_user("aws", "us-west-2") as box:
        yield box


@pytest.fixture(scope="module")
def azure(_box_is_possible: None) -> Iterator[Box]:
    with _open_with_user("azure", "eastus") as box:
        yield box
