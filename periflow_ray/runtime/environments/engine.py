"""The container engine of a node: Docker or Podman, whichever works, and what it is asked for."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import HopelessError, JobFailedError
from periflow_ray.private_files import create_private
from periflow_ray.processes import Command
from periflow_ray.runtime.environments.running import Running

# With this an engine's client ends if it could not start the container.
NOT_STARTED = 125
# Names or paths of engines to look for, in this order; empty for none.
ENGINES_VARIABLE = "PERIFLOW_CONTAINER_ENGINE"
_ASK_TIMEOUT_S = 30.0
_NUM_SHOWN_LINES = 6
_PULL_TRIES = 3
_PULL_RETRY_S = 5.0
_PULL_GRACE_S = 2.0
_CREDENTIAL_ADVICE = (
    "Name a credential with its user and password in job_setting.docker.credential_id "
    "(periflow-ray credential create NAME --type docker)"
)
# What engines and registries say where trying again changes nothing.
_REFUSALS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.I), meaning)
    for pattern, meaning in (
        (r"no space left on device|disk quota exceeded", "the disk of the node is full"),
        (
            r"toomanyrequests|pull rate limit",
            f"the registry's limit on fetches without an account is reached. {_CREDENTIAL_ADVICE}",
        ),
        # Of this node, not of the registry.
        (r"permission denied|executable file not found", "the engine of the node is not set up for it"),
        (r"x509|HTTP response to HTTPS client", "the engine of the node does not trust the registry's address"),
        (
            r"no matching manifest|no image found in .*(?:manifest|image index)",
            "it is not made for the node's processor",
        ),
        (
            r"unauthorized|authentication required|\bdenied\b|incorrect username or password|no basic auth|"
            r"403 \(Forbidden\)",
            f"the registry refuses access. {_CREDENTIAL_ADVICE}",
        ),
        (
            r"manifest unknown|not found|does not exist|name unknown|no such image|repository name not known",
            "there is no such image or tag in the registry",
        ),
        (r"invalid reference format|repository name must", "that is no name of an image"),
    )
)


@dataclass(frozen=True)
class Login:
    """User and password of a registry; ``registry`` is None for whichever the image is in."""

    username: str
    password: str
    registry: str | None = None


@dataclass(frozen=True)
class Image:
    """An image as the node has it; ``id`` names its content: ``sha256:...``."""

    name: str
    id: str


class NoEngineError(Exception):
    """No engine works on this machine; the message says what was tried."""


@dataclass(frozen=True)
class Engine:
    """A container engine that works.

    ``user`` is who a command in a container is, so that what it writes belongs to this process's user.
    """

    name: str
    program: str
    version: str
    user: str

    @property
    def is_podman(self) -> bool:
        """Podman and not Docker."""
        return self.name == "podman"

    def remove_command(self, container: str) -> list[str]:
        """A program that ends and removes a container."""
        at_once = ["--time", "0"] if self.is_podman else []
        return [self.program, "rm", "--force", *at_once, "--volumes", container]

    def remove_labelled(self, label: str) -> int:
        """End and remove all containers with a label (``name=value``), running or not; returns how many there were."""
        listed = self._ask("ps", "--all", "--quiet", "--filter", f"label={label}")
        containers = listed.stdout.split() if listed is not None else []
        for container in containers:
            _run(self.remove_command(container))
        return len(containers)

    def find_image(self, name: str) -> Image | None:
        """An image that this node has.

        Raises:
            JobFailedError: the engine does not answer.
        """
        found = self._ask("image", "inspect", "--format", "{{.Id}}", name)
        if found is None:
            raise JobFailedError(f"{self.name} does not answer on this node any more ({self.program})")
        if not found.stdout.strip():
            return None
        image_id = found.stdout.split()[0]
        return Image(name, image_id if ":" in image_id else f"sha256:{image_id}")

    def pull(self, name: str, login: Login | None, on_line: Callable[[str], None], running: Running) -> Image:
        """Fetch an image from its registry.

        Args:
            login: how to get in; it is in a file that only this user can read while this runs.
            on_line: takes what the engine says meanwhile.
            running: by which it may be ended.
        Raises:
            HopelessError: the registry refuses it.
            JobFailedError: the registry cannot be reached, or the fetch was ended.
        """
        full_name = qualify(name)
        for tries_left in reversed(range(_PULL_TRIES)):
            with _logged_in(self, full_name, login) as options:
                is_fetched, lines = self._pull_once(options, full_name, on_line, running)
            if running.is_ended:
                raise JobFailedError(f"the fetch of the image '{name}' was ended, because the attempt is over")
            image = self.find_image(full_name) if is_fetched else None
            if image is not None:
                return Image(name, image.id)
            text = "\n".join(lines)
            meaning = next((meaning for pattern, meaning in _REFUSALS if pattern.search(text)), None)
            if meaning is not None or not tries_left:
                break
            running.pause(_PULL_RETRY_S)
        shown = "\n".join(f"  {line}" for line in lines[-_NUM_SHOWN_LINES:])
        text = f"the image '{name}' cannot be fetched: {meaning or 'the registry does not answer'}.\n{shown}"
        raise JobFailedError(text) if meaning is None else HopelessError(text)

    def _pull_once(
        self, options: _LoginOptions, name: str, on_line: Callable[[str], None], running: Running
    ) -> tuple[bool, list[str]]:
        """Whether it is there now, and what the engine said."""
        lines: list[str] = []

        def take(line: str) -> None:
            if line.strip():
                lines.append(line.strip())
            on_line(line.strip())

        result = running.run(
            Command(
                [self.program, *options.general, "pull", *options.of_pull, name],
                env=os.environ,
                working_dir=Path("/"),
                grace_s=_PULL_GRACE_S,
                on_line=take,
                # Also when this process is killed meanwhile.
                finish=[] if options.directory is None else ["rm", "-rf", options.directory],
            )
        )
        return result.is_success, lines

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str] | None:
        return _run([self.program, *arguments])


def find_engine() -> Engine:
    """The first engine that works here; Docker before Podman, because machines with GPUs are mostly set up for it.

    Raises:
        NoEngineError: there is none.
    """
    reasons = []
    for name in os.environ.get(ENGINES_VARIABLE, "docker podman").split():
        program = shutil.which(name)
        if program is None:
            reasons.append(f"{name} is not installed")
            continue
        engine = _try_docker(program) if "podman" not in os.path.basename(name) else _try_podman(program)
        if isinstance(engine, Engine):
            return engine
        reasons.append(f"{name} does not work ({engine})")
    raise NoEngineError("; ".join(reasons) or f"{ENGINES_VARIABLE} names none")


def qualify(name: str) -> str:
    """An image's name with its registry, as Docker understands a short one: ``python`` is Docker Hub's."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def registry_of(name: str) -> str:
    """The host, with its port, that an image is in."""
    return qualify(name).partition("/")[0]


def _try_docker(program: str) -> Engine | str:
    asked = _run([program, "version", "--format", "{{.Server.Version}}"])
    if asked is None:
        return "it does not answer"
    if asked.returncode != 0 or not asked.stdout.strip():
        return _last_line(asked)
    options = _run([program, "info", "--format", "{{.SecurityOptions}}"])
    is_rootless = options is not None and "rootless" in options.stdout
    user = "0:0" if is_rootless or os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
    return Engine("docker", program, asked.stdout.strip(), user)


def _try_podman(program: str) -> Engine | str:
    asked = _run([program, "info", "--format", "{{.Version.Version}}"])
    if asked is None:
        return "it does not answer"
    if asked.returncode != 0 or not asked.stdout.strip():
        return _last_line(asked)
    # Without root, root in the container is this user.
    return Engine("podman", program, asked.stdout.strip(), "0:0")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"


@dataclass(frozen=True)
class _LoginOptions:
    """Of the engine before its verb, and of ``pull``."""

    general: tuple[str, ...] = ()
    of_pull: tuple[str, ...] = ()
    # Where the password is.
    directory: str | None = None


@contextlib.contextmanager
def _logged_in(engine: Engine, image: str, login: Login | None) -> Iterator[_LoginOptions]:
    """Options with which the engine is logged in at a registry, and nowhere else, while this lasts."""
    if login is None:
        yield _LoginOptions()
        return
    # In memory where there is such a place, and never in the user's own configuration.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="periflow-login-", dir=shared if os.access(shared, os.W_OK) else None, ignore_cleanup_errors=True
    ) as directory:
        registry = login.registry or registry_of(image)
        hosts = {registry, "https://index.docker.io/v1/"} if registry.endswith("docker.io") else {registry}
        token = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        config = Path(directory, "config.json")
        create_private(config, json.dumps({"auths": {host: {"auth": token} for host in hosts}}).encode())
        if engine.is_podman:
            yield _LoginOptions(of_pull=("--authfile", str(config)), directory=directory)
        else:
            yield _LoginOptions(general=("--config", directory), directory=directory)
