"""Who makes a job, a checkpoint or a dataset."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The user's name; the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A user id without an entry in the user database, as in containers.
        return str(os.getuid())
