"""The absolute paths that a template names, and their rewriting where they cannot be made real.

On a bare node a job has a sandbox directory, and the mount path ``/workspace`` means ``<sandbox>/workspace``. The
command and the environment are rewritten as text, at path boundaries only: ``--save=/workspace/ckpt`` is a declared
path, ``/workspace2``, ``$HOME/workspace`` and ``s3://bucket/workspace`` are not.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict

MountKind = Literal["workspace", "checkpoint", "checkpoint_input", "data"]


class Mount(BaseModel):
    """A directory that the job finds at an absolute path.

    ``source`` is the workspace directory's name, the input checkpoint's id or the dataset's name; None for the output
    checkpoint directory, and for a workspace that is not known yet.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: MountKind
    path: str
    source: str | None = None


def rewrite_paths(text: str, mount_paths: Collection[str], sandbox_dir: str) -> str:
    """Put ``sandbox_dir`` in front of every mount path that ``text`` names as an absolute path.

    Args:
        text: a shell command or an environment variable's value.
        mount_paths: absolute paths; a trailing slash makes no difference.
        sandbox_dir: absolute path without characters that a shell would interpret.
    """
    pattern = _path_pattern(mount_paths)
    if pattern is None:
        return text
    return pattern.sub(lambda match: f"{match['lead']}{sandbox_dir.rstrip('/')}{match['path']}", text)


def rewritten_mounts(text: str, mount_paths: Collection[str]) -> tuple[str, ...]:
    """List the mount paths that ``rewrite_paths`` would rewrite in ``text``, each once, in order of appearance."""
    pattern = _path_pattern(mount_paths)
    if pattern is None:
        return ()
    return tuple(dict.fromkeys(match["path"] for match in pattern.finditer(text)))


def normalize_mount_path(path: str) -> str:
    """Drop trailing slashes: ``/workspace/`` and ``/workspace`` are the same mount."""
    return path.rstrip("/") or "/"


# A path may start the text, or follow what separates shell words or values. Anything else before it (a letter,
# "}" of ${X}, ")" of $(pwd), ".", "~") makes it the middle of another path.
_BEFORE = r"""(?:(?<![^\s=:,;(<>|&\[{@])|(?<=[:=][-+?])|(?<=file://)|(?<=sqlite:///))"""
# Quotes (escaped ones too) open here rather than close, because of what _BEFORE allows; -I/workspace is a flag.
_LEAD = r"""(?P<lead>["'`\\]*(?:-[A-Za-z]["'`\\]*)?)"""
# A path ends at a slash, at what separates words or values, or at an escaped quote or line end; "2", "-old", ".bak",
# "*" and "$X" make it another name.
_AFTER = r"""(?=$|[\s/"'`:,;)\]}<>|&]|\\["'\n])"""


def _path_pattern(mount_paths: Collection[str]) -> re.Pattern[str] | None:
    # The longest first, so that /workspace/data is reported as itself and not as /workspace.
    paths = sorted({normalize_mount_path(path) for path in mount_paths}, key=len, reverse=True)
    if not paths:
        return None
    return re.compile(f"{_BEFORE}{_LEAD}(?P<path>{'|'.join(re.escape(path) for path in paths)}){_AFTER}")
