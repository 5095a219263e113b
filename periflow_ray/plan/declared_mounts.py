"""The directories that a template declares: where the workspace, the dataset and checkpoints appear in the job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from periflow_ray.errors import PlanError
from periflow_ray.plan.mounts import Mount
from periflow_ray.spec.models import JobSpec

_MOUNT_TITLES = {
    "workspace": "the workspace",
    "data": "data.mount_path",
    "checkpoint_input": "checkpoint.input.mount_path",
}


def declare_mounts(spec: JobSpec, workspace_dir_name: str | None) -> tuple[Mount, ...]:
    """All of them, each at a path of its own.

    Raises:
        PlanError: two share a path, or are inside each other where that cannot be.
    """
    mounts: list[Mount] = []
    keys_by_path: dict[str, str] = {}
    for key_path, mount in _declared_mounts(spec, workspace_dir_name):
        key = ".".join(key_path)
        if mount.path in keys_by_path:
            raise PlanError(
                f"{keys_by_path[mount.path]} and {key} are both {mount.path!r}. Give each its own directory.", key_path
            )
        keys_by_path[mount.path] = key
        mounts.append(mount)
    _check_data_mount(mounts)
    _check_output_dir(mounts)
    return tuple(mounts)


def _check_data_mount(mounts: Sequence[Mount]) -> None:
    """A dataset is read-only, so nothing else can be inside it."""
    for data in mounts:
        for inner in mounts:
            if data.kind == "data" and inner.path.startswith(f"{data.path.rstrip('/')}/"):
                raise PlanError(
                    f"{inner.path!r} is inside data.mount_path {data.path!r}, which is read-only. Give the dataset a "
                    "directory of its own.",
                    ("data", "mount_path"),
                )


def _check_output_dir(mounts: Sequence[Mount]) -> None:
    """A restart replaces the whole output directory, so nothing else can be, or be inside, it."""
    for output in mounts:
        for other in mounts:
            if output.kind != "checkpoint" or other is output:
                continue
            path = other.path.rstrip("/")
            if other.kind == "workspace" and other.source is not None:
                path = f"{path}/{other.source}"
            is_inside = f"{path}/".startswith(f"{output.path.rstrip('/')}/")
            if is_inside or (other.kind == "checkpoint_input" and output.path.startswith(f"{path}/")):
                raise PlanError(
                    f"output_checkpoint_dir {output.path!r} and {path!r} ({_MOUNT_TITLES[other.kind]}) are inside each "
                    "other, and every restart replaces output_checkpoint_dir as a whole. Give it a directory of its "
                    "own, for example '/workspace/ckpt'.",
                    ("checkpoint", "output_checkpoint_dir"),
                )


def _declared_mounts(spec: JobSpec, workspace_dir_name: str | None) -> Iterator[tuple[tuple[str, ...], Mount]]:
    workspace = spec.job_setting.workspace
    yield (
        ("job_setting", "workspace", "mount_path"),
        Mount(kind="workspace", path=workspace.mount_path, source=workspace_dir_name),
    )
    if spec.checkpoint and spec.checkpoint.output_checkpoint_dir:
        yield (
            ("checkpoint", "output_checkpoint_dir"),
            Mount(kind="checkpoint", path=spec.checkpoint.output_checkpoint_dir),
        )
    if spec.checkpoint and spec.checkpoint.input:
        given = spec.checkpoint.input
        yield (
            ("checkpoint", "input", "mount_path"),
            Mount(kind="checkpoint_input", path=given.mount_path, source=given.id),
        )
    if spec.data:
        yield ("data", "mount_path"), Mount(kind="data", path=spec.data.mount_path, source=spec.data.name)
