"""Podman with a storage of the test's own, and images that are made of this machine's own programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.storage_servers import find_free_port, run_server

PODMAN_MISSING = "needs Podman and runc, as root: apt-get install podman runc"
PROGRAMS = (
    *("bash", "sh", "env", "cat", "ls", "cp", "rm", "mkdir", "sleep", "kill", "id", "stat", "touch", "chmod", "chown"),
    *("grep", "head", "df", "sed", "tr", "printf", "true", "setpriv"),
)


def has_podman() -> bool:
    """Whether containers can be started here."""
    return os.geteuid() == 0 and shutil.which("podman") is not None and shutil.which("runc") is not None


def make_rootfs(directory: Path) -> None:
    """Fill a directory with a small Linux that has bash, Python without any package, and their libraries."""
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name))]
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    libraries: set[Path] = set()
    stdlib = Path(os.__file__).parent
    for binary in [*programs, python, *(stdlib / "lib-dynload").glob("*.so")]:
        libraries |= _find_libraries(binary)
    # What Python loads when it first ends a thread.
    libraries |= set(Path("/lib").glob("*/libgcc_s.so.1"))
    for library in libraries:
        _copy(library, directory)
    for program in programs:
        (directory / "usr/bin").mkdir(parents=True, exist_ok=True)
        shutil.copy2(program, directory / "usr/bin" / program.name)
    _copy(python, directory)
    left_out = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "tests", "__pycache__", "config-*", "*.a"
    )
    shutil.copytree(stdlib, directory / stdlib.relative_to("/"), ignore=left_out, dirs_exist_ok=True)
    (directory / "bin").mkdir(exist_ok=True)
    # Of a torch that is mounted.
    (directory / "usr/bin/torchrun").write_text('#!/bin/sh\nexec python -m torch.distributed.run "$@"\n')
    (directory / "usr/bin/torchrun").chmod(0o755)
    for link, target in (("bin/sh", "/usr/bin/sh"), ("usr/bin/python3", str(python)), ("usr/bin/python", str(python))):
        (directory / link).symlink_to(target)
    for name in ("etc", "root", "proc", "sys", "dev"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "tmp").mkdir()
    (directory / "tmp").chmod(0o1777)
    (directory / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")


def _find_libraries(binary: Path) -> set[Path]:
    listed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    return {Path(word) for line in listed.splitlines() for word in line.split() if word.startswith("/")}


def _copy(path: Path, directory: Path) -> None:
    target = directory / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


# Where the image's Python has its packages.
IMAGE_PACKAGES = f"{Path(os.__file__).parent}/site-packages"
# User "someone", password "right".
_HTPASSWD = "someone:$2b$04$EcMOybnxtleSGOF20uyZe.hM8GwJSDoVvYSX30qYHPoOfbXPHnYLO"
REGISTRY_MISSING = "needs a registry of images: apt-get install docker-registry"


class Podman:
    """Podman with its storage in a directory, found by whatever runs with ``environment``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        storage, self._containers = directory / "storage.conf", directory / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'
        )
        self.bring({})
        self.environment = {
            "CONTAINERS_CONF": str(self._containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
            "PERIFLOW_CONTAINER_ENGINE": "podman",
        }
        self.trust("localhost:1")

    def bring(self, directories: Mapping[str, str]) -> None:
        """Have directories of this machine at paths of every container, as if its image had them."""
        volumes = ", ".join(f'"{source}:{path}:ro"' for source, path in directories.items())
        # Where few processes and files are allowed, more cannot be asked for; and crun does not work everywhere.
        self._containers.write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
            f"volumes = [{volumes}]\n"
            f'[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\ntmp_dir = "{self._directory}/tmp"\n'
        )

    def trust(self, registry: str) -> None:
        """Take images from a registry without TLS."""
        text = f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n'
        Path(self.environment["CONTAINERS_REGISTRIES_CONF"]).write_text(text)

    def run(self, *arguments: str) -> str:
        """Run podman to its end; returns what it printed."""
        done = subprocess.run(
            ["podman", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_image(self, name: str, rootfs: Path, *changes: str) -> str:
        """Import a directory as an image; returns its name. ``changes`` as in a Dockerfile: ``ENV A=b``."""
        archive = self._directory / "rootfs.tar"
        with tarfile.open(archive, "w") as packed:
            packed.add(rootfs, arcname=".")
        self.run("import", *(f"--change={change}" for change in changes), str(archive), name)
        archive.unlink()
        return name

    def list_containers(self) -> list[str]:
        """All that there are, running or not."""
        return self.run("ps", "--all", "--quiet").split()

    def close(self) -> None:
        """Remove everything."""
        with contextlib.suppress(AssertionError):
            self.run("rm", "--all", "--force", "--time", "0")
        for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            path = mount.split()[1]
            if path.startswith(f"{self._directory}/"):
                subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def serve_podman(directory: Path) -> Iterator[tuple[Podman, str]]:
    """Podman and the name of an image with Python, without Ray; skips where it is not there or may not do its work."""
    if not has_podman():
        pytest.skip(PODMAN_MISSING)
    podman = Podman(directory)
    try:
        rootfs = directory / "rootfs"
        make_rootfs(rootfs)
        name, changes = "localhost/periflow-test:1", ("ENV FROM_IMAGE=yes", "ENV PYTHONPATH=/opt/of-image")
        try:
            image = podman.make_image(name, rootfs, *changes)
            podman.run("run", "--rm", "--network=host", "--memory=128m", image, "true")
        except AssertionError as err:
            # As inside of most containers: without the rights, or on a file system of theirs.
            pytest.skip(f"Podman starts no containers here: {err}")
        shutil.rmtree(rootfs)
        yield podman, image
    finally:
        podman.close()


@contextlib.contextmanager
def serve_registry(directory: Path, image: str, podman: Podman) -> Iterator[str]:
    """A private registry that has ``image``, as ``<its address>/private/image:1``; gives its address."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip(REGISTRY_MISSING)
    port = find_free_port()
    (directory / "htpasswd").write_text(_HTPASSWD)
    (directory / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nauth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n"
    )
    address = f"127.0.0.1:{port}"
    with run_server("docker-registry", [program, "serve", str(directory / "registry.yml")], directory, port):
        podman.trust(address)
        podman.run("push", "--creds", "someone:right", image, f"{address}/private/image:1")
        yield address
