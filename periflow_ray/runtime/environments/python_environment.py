"""The environment of ``job_setting.python``: made once per node for all jobs that ask for the same, and kept.

It is a layer above the cluster's packages, or above none of them, and nobody writes to it any more when it is
made: what a command installs goes into a layer of the job's own above it. Its name is a digest of all that decides what
is in it: the requirements with the files that they include, the Python, where packages come from, the platform, and the
cluster's packages where those count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import HopelessError
from periflow_ray.private_files import make_private_directories
from periflow_ray.runtime.environments.container import Bind
from periflow_ray.runtime.environments.image_python import ImagePython
from periflow_ray.runtime.environments.install import Installer, find_uv, give_pip
from periflow_ray.runtime.environments.layer import Layer, PythonBelow, find_cluster_python
from periflow_ray.runtime.environments.packages import list_packages
from periflow_ray.spec.python import PythonSpec
from periflow_ray.spec.requirements import Requirements, read_requirements
from periflow_ray.store.datasets.cache import DIR_VARIABLE, CacheUse, DatasetCache
from periflow_ray.user_dirs import cache_dir

# Of pip's and uv's variables those that change nothing of what is installed.
_HARMLESS_SETTINGS = (
    "CACHE_DIR",
    "INPUT",
    "VERSION_CHECK",
    "PROGRESS",
    "TIMEOUT",
    "RETRIES",
    "VERBOSE",
    "QUIET",
    "COLOR",
)


@dataclass(frozen=True)
class OpenEnvironment:
    """An environment in use, until ``close``.

    Args:
        key: its name.
        below: it, as what the job's own layer builds on.
        packages: ``name==version`` of what is in it.
        has_cluster_packages: the cluster's packages are found as well.
    """

    key: str
    below: PythonBelow
    packages: tuple[str, ...]
    has_cluster_packages: bool
    use: CacheUse

    def close(self) -> None:
        """It may be removed from now on, where there is no room."""
        self.use.close()


def open_environment(
    spec: PythonSpec,
    workspace_dir: Path,
    installer: Installer,
    *,
    tell: Callable[[str], None],
    image: ImagePython | None = None,
    cache: DatasetCache | None = None,
) -> OpenEnvironment:
    """The environment that a template asks for, which this call makes where the node does not have it yet.

    Args:
        workspace_dir: where its requirements file is.
        tell: takes a sentence on what is done, where it takes a while.
        image: the Python of the job's image, where that takes the place of the cluster's.
    Raises:
        HopelessError: it cannot be made, by the user's or the index's fault.
        OSError, StorageError: it cannot be made for other reasons.
    """
    if image is None:
        base, has_cluster_packages = _choose_base(spec, find_cluster_python(), installer)
    else:
        base, has_cluster_packages = _choose_base_of_image(spec, image)
    requirements = _read(spec, workspace_dir)
    below_packages = _list_below(base, image) if has_cluster_packages else None
    key = _digest(spec, requirements, base, below_packages, workspace_dir, installer, image)
    cache = cache or open_cache()
    if installer.container is not None:
        directory = str(cache.directory)
        make_private_directories(cache.directory)
        seen = installer.container.with_bind(Bind(cache.directory, directory))
        installer = dataclasses.replace(installer, container=seen)
    gives_pip = not has_cluster_packages or (image is not None and not image.has_pip)
    num_packages = len(requirements.names) + len(spec.packages)
    label = f"{num_packages} package{'' if num_packages == 1 else 's'}"

    def fill(files: Path) -> None:
        tell(f"installs {label} for Python {base.version} (environment {key})")
        # What an installation that was killed has left is not taken for a part.
        for leftover in files.iterdir():
            _remove(leftover)
        try:
            _make(files, spec, base, installer, has_cluster_packages, gives_pip=gives_pip)
        except BaseException:
            with contextlib.suppress(OSError):
                for leftover in files.iterdir():
                    _remove(leftover)
            raise

    cache.discard_unfinished()
    use = cache.open(
        key,
        fill,
        on_wait=lambda: tell(f"waits for another job, which installs the same {label}"),
        check_wait=installer.check,
    )
    try:
        layer = Layer(use.path, base.minor_version)
        facts = json.loads((use.path / "environment.json").read_text())
    except BaseException:
        use.close()
        raise
    below = layer.as_below(base, made_in=facts["made_in"])
    return OpenEnvironment(key, below, tuple(facts["packages"]), has_cluster_packages, use)


def open_cache() -> DatasetCache:
    """Where this user's environments are on this machine."""
    given = os.environ.get(DIR_VARIABLE)
    directory = Path(given) / "environments" if given else cache_dir() / "environments"
    return DatasetCache(directory, noun="environment")


def _choose_base(spec: PythonSpec, cluster: PythonBelow, installer: Installer) -> tuple[PythonBelow, bool]:
    is_clusters = spec.version in (None, cluster.minor_version)
    if spec.system_packages and not is_clusters:
        raise HopelessError(
            f"job_setting.python asks for Python {spec.version} with system_packages, but the cluster's packages are "
            f"for Python {cluster.minor_version}. Leave one of the two out"
        )
    if is_clusters and spec.system_packages is not False:
        return cluster, True
    if is_clusters:
        return PythonBelow(cluster.interpreter, cluster.version, ()), False
    assert spec.version is not None
    return installer.find_interpreter(spec.version), False


def _choose_base_of_image(spec: PythonSpec, image: ImagePython) -> tuple[PythonBelow, bool]:
    below = image.below
    if spec.version not in (None, below.minor_version):
        raise HopelessError(
            f"job_setting.python.version is {spec.version}, and the image's Python is {below.version}. Leave 'version' "
            "out, or name an image that has it"
        )
    if spec.system_packages is False:
        return PythonBelow(below.interpreter, below.version, ()), False
    return below, True


def _list_below(base: PythonBelow, image: ImagePython | None) -> tuple[str, ...]:
    return list_packages([*base.package_dirs, *sys.path]) if image is None else image.packages


def _read(spec: PythonSpec, workspace_dir: Path) -> Requirements:
    if spec.requirements is None:
        return Requirements()
    found = read_requirements(spec.requirements, lambda path: (workspace_dir / path).read_text("utf-8"))
    if found.problems:
        raise HopelessError("job_setting.python.requirements cannot be used:\n" + "\n".join(found.problems))
    return found


def _digest(
    spec: PythonSpec,
    requirements: Requirements,
    base: PythonBelow,
    below_packages: tuple[str, ...] | None,
    workspace_dir: Path,
    installer: Installer,
    image: ImagePython | None,
) -> str:
    environ = installer.environ
    has_uv = image is None and below_packages is None and find_uv(environ) is not None
    settings = {
        name: value
        for name, value in environ.items()
        if name.startswith(("PIP_", "UV_")) and not any(part in name for part in _HARMLESS_SETTINGS)
    }
    decides = {
        "lines": requirements.lines,
        "local": [_digest_local(workspace_dir / path) for path in requirements.local_paths],
        "packages": spec.packages,
        "python": [base.interpreter, base.version, sysconfig.get_platform(), platform.libc_ver()[1]],
        "cluster": below_packages,
        "installer": "uv" if has_uv else "pip",
        "settings": settings,
        **({} if image is None else {"image": image.image_id}),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _digest_local(path: Path) -> list[str]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files if file.is_file()]


def _make(
    files: Path,
    spec: PythonSpec,
    base: PythonBelow,
    installer: Installer,
    has_cluster_packages: bool,
    *,
    gives_pip: bool,
) -> None:
    layer = Layer(files, base.minor_version)
    # The cluster's own scripts come into the job's layer by themselves.
    layer.write(PythonBelow(base.interpreter, base.version, base.package_dirs), has_user_dir=False)
    if gives_pip:
        give_pip(layer)
    named = ["-r", spec.requirements] if spec.requirements is not None else []
    if named or spec.packages:
        installer.install(layer, [*named, *spec.packages], sees_below=has_cluster_packages)
    facts = {"packages": list_packages([layer.package_dir]), "made_in": str(layer.bin_dir)}
    (files / "environment.json").write_text(json.dumps(facts))


def _remove(path: Path) -> None:
    from periflow_ray.store.read_only import remove_tree

    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink()
