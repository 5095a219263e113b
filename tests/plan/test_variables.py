from __future__ import annotations

from periflow_ray.plan import drop_internal_variables


def test_of_our_own_variables_only_those_that_people_set_are_handed_on():
    environ = {
        "HOME": "/ada",
        "MY_PERIFLOW_SECRETS_KEY": "the user's own",
        "PERIFLOW_CACHE_DIR": "/cache",
        "PERIFLOW_SECRETS_KEY": "the-key",
        "PERIFLOW_SESSION": "/socket",
        "PERIFLOW_OF_A_LATER_VERSION": "unknown, thus internal",
    }
    assert drop_internal_variables(environ) == {
        "HOME": "/ada",
        "MY_PERIFLOW_SECRETS_KEY": "the user's own",
        "PERIFLOW_CACHE_DIR": "/cache",
    }
