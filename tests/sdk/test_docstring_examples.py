"""The examples in the documentation of the SDK's calls, run outside a job."""

from __future__ import annotations

import doctest

import pytest

import periflow_ray as pf
from periflow_ray.sdk import session

CALLS = (
    "init",
    "start_step",
    "end_step",
    "train_step",
    "metric",
    "upload_checkpoint",
    "is_emergency_save",
    "resumed_step",
)


@pytest.mark.parametrize("name", CALLS)
def test_the_example_of_a_call_does_what_it_says(name: str) -> None:
    call = getattr(pf, name)
    test = doctest.DocTestParser().get_doctest(call.__doc__, {"pf": pf}, name, None, None)
    assert len(test.examples) > 0
    try:
        assert doctest.DocTestRunner().run(test).failed == 0
    finally:
        # The session of this process, which other tests find closed.
        session.use_channel_factory(None)
