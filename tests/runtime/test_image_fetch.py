"""An image that a node does not have: fetched from a private registry, or not."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_run import NodeRun
from support.container_images import Podman, serve_registry

from periflow_ray.errors import HopelessError, JobFailedError
from periflow_ray.runtime.environments import container
from periflow_ray.runtime.environments.engine import Engine, Login, find_engine
from periflow_ray.runtime.environments.running import Running

pytestmark = pytest.mark.usefixtures("sandboxes")


@pytest.fixture(scope="session")
def served_registry(served_podman: tuple[Podman, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    podman, image = served_podman
    with serve_registry(tmp_path_factory.mktemp("registry"), image, podman) as address:
        yield address


@pytest.fixture
def registry(podman: Podman, served_registry: str) -> str:
    """The address of a private registry, which lets in "someone" with the password "right"."""
    return served_registry


@pytest.mark.parametrize(
    ("password", "tag", "message"),
    [
        ("right", "1", None),
        ("wrong", "1", "the registry refuses access. Name a credential"),
        (None, "1", "the registry refuses access. Name a credential"),
        ("right", "2", "there is no such image or tag in the registry"),
    ],
    ids=["right", "wrong", "none", "missing-tag"],
)
def test_an_image_of_a_private_registry_is_fetched_by_its_credential(
    podman: Podman,
    image: str,
    make_run: Callable[..., NodeRun],
    registry: str,
    password: str | None,
    tag: str,
    message: str | None,
) -> None:
    login = None if password is None else Login("someone", password)
    run = make_run("echo $FROM_IMAGE", f"{registry}/private/image:{tag}", login=login, require_image=True)
    if message is not None:
        with pytest.raises(JobFailedError, match=message):
            run.start()
        run.shell.close()
    else:
        run.start()
        assert run.finish() is None
        assert run.lines() == ["yes"]
        podman.run("rmi", f"{registry}/private/image:{tag}")
    assert run.notes[0] == f"node 0 fetches the image '{registry}/private/image:{tag}' with podman"
    assert not [path for path in Path("/dev/shm").glob("periflow-login-*/*") if registry in read_if_there(path)]


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("toomanyrequests: You have reached your unauthenticated pull rate limit.", "the registry's limit on fetches"),
        ("failed to register layer: write /usr/lib/x: no space left on device", "the disk of the node is full"),
        ("writing blob: mkdir /var/lib/containers: permission denied", "the engine of the node is not set up for it"),
        ("exec: docker-credential-desktop: executable file not found in $PATH", "the engine of the node is not set up"),
        ("tls: failed to verify certificate: x509: unknown authority", "does not trust the registry's address"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "not made for the node's processor"),
        ("pull access denied for a/b, repository does not exist or may require login", "the registry refuses access"),
    ],
)
def test_what_an_engine_says_is_told_as_what_it_means(tmp_path: Path, words: str, meaning: str) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n[ $1 = pull ] && cat <<'END'\n{words}\nEND\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(HopelessError, match=meaning) as caught:
        Engine("docker", str(program), "28", "0:0").pull("a/b", None, lambda line: None, Running())
    assert words in str(caught.value)


def test_the_password_of_a_registry_is_in_no_command_line(
    podman: Podman, image: str, registry: str, tmp_path: Path
) -> None:
    # The engine is a script that notes what it is started with.
    program = tmp_path / "podman"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/arguments\nenv >>{tmp_path}/arguments\nexec podman "$@"\n')
    program.chmod(0o755)
    engine = dataclasses.replace(find_engine(), program=str(program))
    engine.pull(f"{registry}/private/image:1", Login("someone", "right"), lambda line: None, Running())
    podman.run("rmi", f"{registry}/private/image:1")
    assert " --authfile /dev/shm/periflow-login-" in (tmp_path / "arguments").read_text()
    assert re.search(r"\bright\b", (tmp_path / "arguments").read_text()) is None


@pytest.fixture
def silent_registry(podman: Podman) -> Iterator[str]:
    """The address of one that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        podman.trust(address)
        yield address


def test_the_end_of_an_attempt_ends_the_fetch_of_an_image_from_a_registry_that_hangs(
    silent_registry: str, make_run: Callable[..., NodeRun], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    name = f"{silent_registry}/an/image:1"
    run = make_run("true", name, login=Login("someone", "right"), require_image=True)
    raised: list[BaseException] = []

    def start() -> None:
        try:
            run.start()
        except JobFailedError as err:
            raised.append(err)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: find_fetches(name) != [])
    run.shell.end_preparation()
    thread.join(30)
    run.shell.close()
    assert str(raised[0]) == f"the fetch of the image '{name}' was ended, because the attempt is over"
    assert find_fetches(name) == []
    assert not list(Path("/dev/shm").glob("periflow-login-*"))


FETCHES = """
import sys
from periflow_ray.runtime.environments.engine import Login, find_engine
from periflow_ray.runtime.environments.running import Running
find_engine().pull(sys.argv[1], Login("someone", "right"), print, Running())
"""


def test_a_fetch_ends_with_the_process_that_is_killed_and_leaves_no_password(
    silent_registry: str, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    name = f"{silent_registry}/an/image:1"
    agent = subprocess.Popen([sys.executable, "-c", FETCHES, name])
    wait_until(lambda: find_fetches(name) != [])
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    wait_until(lambda: find_fetches(name) == [] and not list(Path("/dev/shm").glob("periflow-login-*")))


def find_fetches(name: str) -> list[int]:
    """Engines that fetch an image."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pull" in words and name.encode() in words and b"keeper.py" not in b" ".join(words[:4]):
            found.append(int(path.parent.name))
    return found


def read_if_there(path: Path) -> str:
    """The text of a file that another test may remove meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


def test_gpus_that_podman_does_not_know_are_no_part_of_its_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, devices = tmp_path / "nvidiactl", tmp_path / "cdi"
    monkeypatch.setattr(container, "_GPU_DEVICE", device)
    monkeypatch.setattr(container, "_CDI_DIRECTORIES", (devices,))
    podman, docker = (Engine(name, name, "1", "0:0") for name in ("podman", "docker"))
    assert container.has_gpus(podman)  # There are none that could be missing.
    device.touch()
    assert (container.has_gpus(podman), container.has_gpus(docker)) == (False, True)
    devices.mkdir()
    (devices / "nvidia.yaml").touch()
    assert container.has_gpus(podman)
