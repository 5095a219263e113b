"""The absolute paths that a template names, and their rewriting where they cannot be made real.

On a bare node a job has a sandbox directory, and the mount path ``/workspace`` means ``<sandbox>/workspace``. The
command and the environment are rewritten as text, at path boundaries only: ``--save=/workspace/ckpt`` is a declared
path, ``/workspace2``, ``$HOME/workspace`` and ``s3://bucket/workspace`` are not. Nor are the paths of another machine
(``host:/workspace``, as scp and rsync take it) and those inside a container (the second one of ``-v /data:/data``).
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

    def rewrite(match: re.Match[str]) -> str:
        return f"{match['lead']}{sandbox_dir.rstrip('/')}{match['path']}" if _is_local(match) else match[0]

    return pattern.sub(rewrite, text)


def rewritten_mounts(text: str, mount_paths: Collection[str]) -> tuple[str, ...]:
    """List the mount paths that ``rewrite_paths`` would rewrite in ``text``, each once, in order of appearance."""
    pattern = _path_pattern(mount_paths)
    if pattern is None:
        return ()
    return tuple(dict.fromkeys(match["path"] for match in pattern.finditer(text) if _is_local(match)))


def normalize_mount_path(path: str) -> str:
    """Drop trailing slashes: ``/workspace/`` and ``/workspace`` are the same mount."""
    return path.rstrip("/") or "/"


_MAX_BEFORE_CHARS = 1000
# A path may start the text, or follow what separates shell words or values. Anything else before it (a letter,
# "}" of ${X}, ")" of $(pwd), ".", "~") makes it the middle of another path.
_BEFORE = r"""(?:(?<![^\s=:,;(<>|&\[{@])|(?<=[:=][-+?])|(?<=file://)|(?<=sqlite:///))"""
# Quotes (escaped ones too) open here rather than close, because of what _BEFORE allows; -I/workspace is a flag.
_LEAD = r"""(?P<lead>["'`\\]*(?:-[A-Za-z]["'`\\]*)?)"""
# A path ends at a slash, at what separates words or values, or at an escaped quote or line end; "2", "-old", ".bak",
# "*" and "$X" make it another name.
_AFTER = r"""(?=$|[\s/"'`:,;)\]}<>|&]|\\["'\n])"""

# What stands before the path of another machine, and is no name of a search path's first part.
_HOST = re.compile(r"""(?<=[\s"'`(])(?:\[[\da-fA-F:.]+\]|[^\s"'`(/=,]*@[^\s"'`(/=,]+):\Z""")
# Programs for which it may be any name, also a variable.
_COPY_TO_HOST = re.compile(
    r"(?:\A|[;&|(\n])\s*(?:[^\s=]*=\S*\s+)*(?:\S*/)?(?:scp|sftp|rsync|sshfs|mount)\s[^;&|\n]*?[^\s/=]+:\Z"
)
# A path inside a container, as docker, podman and apptainer take it.
_CONTAINER = re.compile(r"(?<!\S)(?:(?:-v|--volume|-B|--bind)[\s=]*\S*:|--mount[\s=]+\S*(?:dst|target|destination)=)\Z")


def _is_local(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - _MAX_BEFORE_CHARS) : match.start()]
    if not before.endswith((":", "=")):
        return True
    return not any(pattern.search(before) for pattern in (_HOST, _COPY_TO_HOST, _CONTAINER))


def _path_pattern(mount_paths: Collection[str]) -> re.Pattern[str] | None:
    # The longest first, so that /workspace/data is reported as itself and not as /workspace.
    paths = sorted({normalize_mount_path(path) for path in mount_paths}, key=len, reverse=True)
    if not paths:
        return None
    return re.compile(f"{_BEFORE}{_LEAD}(?P<path>{'|'.join(re.escape(path) for path in paths)}){_AFTER}")
