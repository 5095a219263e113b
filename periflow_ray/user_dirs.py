"""Where this user's files of periflow-ray are: in the directories that the operating system has for it."""

from __future__ import annotations

from pathlib import Path

import platformdirs

_DIRS = platformdirs.PlatformDirs("periflow-ray", appauthor=False)


def cache_dir() -> Path:
    """What can be fetched again."""
    return Path(_DIRS.user_cache_dir)


def config_dir() -> Path:
    """What the user has set."""
    return Path(_DIRS.user_config_dir)


def data_dir() -> Path:
    """What is to be kept."""
    return Path(_DIRS.user_data_dir)


def state_dir() -> Path:
    """What belongs to what runs on this machine."""
    return Path(_DIRS.user_state_dir)
