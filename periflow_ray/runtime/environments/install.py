"""How packages are installed into an environment: with pip or uv, whose words reach the log, and why it failed."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from periflow_ray.errors import HopelessError, JobFailedError
from periflow_ray.processes import Command, CommandResult
from periflow_ray.runtime.environments.container import Container, Start
from periflow_ray.runtime.environments.layer import Layer, PythonBelow
from periflow_ray.runtime.environments.running import Running
from periflow_ray.secret_mask import SecretMask, hide_logins

NUM_LAST_LINES = 15
_GRACE_S = 2.0
# Where they would lead packages past the environment, or the environment's own pip astray.
_DROPPED = frozenset({"PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"})
# The first one that any of the last lines has: who cannot reach an index says at the end that it has no such package.
_REASONS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (
            r"No module named '?pip'?$",
            "the Python that they are for has no pip. Install it there: python -m ensurepip, or uv pip install pip",
        ),
        (
            r"No space left on device|Disk quota exceeded|Errno 28",
            "the disk is full. Free some, or set PERIFLOW_CACHE_DIR or TMPDIR to another one where Ray is started",
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate",
            "the certificate of the package index is not trusted there. Name a file with the right ones with PIP_CERT "
            "in env_var (SSL_CERT_FILE for uv), or another index with PIP_INDEX_URL (UV_INDEX_URL)",
        ),
        (
            # pip's last try, and uv.
            r"Retry\(total=0|Max retries exceeded|Failed to fetch|error sending request|tcp connect error",
            "the package index cannot be reached from this node. Another one is named with PIP_INDEX_URL in env_var "
            "(UV_INDEX_URL for uv) or --index-url in the requirements file",
        ),
        (
            r"ResolutionImpossible|conflicting dependencies|are incompatible|unsatisfiable",
            "the requirements contradict each other, or there is no package that satisfies them. Correct them",
        ),
        (
            r"No matching distribution found|Could not find a version|was not found in|No solution found|"
            r"Requires-Python|there (?:is|are) no versions? of",
            "there is no such package or version for this Python. Correct the requirements",
        ),
        (r"Invalid requirement|[Cc]ould not parse|Couldn't parse", "a requirement cannot be read. Correct it"),
        (r"HASH|[Hh]ash mismatch", "a package is not the one whose hash the requirements name"),
        (
            r"Failed building wheel|Failed to build|metadata-generation-failed|subprocess-exited-with-error",
            "a package cannot be built on this node: a compiler, or a library that it needs, may be missing",
        ),
    )
)


@dataclass(frozen=True)
class Installer:
    """What installing needs to know.

    Args:
        environ: variables of the job's command.
        working_dir: where relative paths of requirements lead from.
        write: takes each line of the installer's output.
        mask: whose secrets no line is cut through.
        running: by which it may be ended.
        container: what it runs in; None for this machine as it is.
    """

    environ: Mapping[str, str]
    working_dir: Path
    write: Callable[[str], object]
    mask: SecretMask | None = None
    running: Running = field(default_factory=Running)
    container: Container | None = None

    def install(self, layer: Layer, arguments: Sequence[str], *, sees_below: bool) -> None:
        """Install into a layer what pip's arguments name.

        Args:
            sees_below: packages below the layer count as installed; uv does not know of such ones.
        Raises:
            HopelessError: it cannot be installed.
            JobFailedError: the installer was killed.
        """
        uv = None if sees_below or self.container is not None else find_uv(self.environ)
        lines: deque[str] = deque(maxlen=NUM_LAST_LINES)

        def take(text: str) -> None:
            # Not every pip leaves out the password of an address that a requirement names.
            line = hide_logins(text)
            # Of the cluster's packages there are hundreds.
            if not line.startswith("Requirement already satisfied"):
                lines.append(line)
                self.write(line)

        command = self._uv_command(uv, layer) if uv is not None else [str(layer.python), "-m", "pip", "install"]
        options = [] if uv is not None else ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        options += [] if uv is not None else ["--no-warn-script-location", "--no-warn-conflicts"]
        result = self._run([*command, *options, *arguments], self._environment(uv), take)
        self.check()
        if result.is_success:
            return
        name = "pip" if uv is None else "uv"
        if result.exit_code is None:
            raise JobFailedError(f"{name}, which installed the packages of job_setting.python, was killed")
        reason = find_reason(lines)
        raise HopelessError(
            "the packages of job_setting.python cannot be installed"
            + (f": {reason}" if reason else f": {name} ended with exit code {result.exit_code}"),
            tuple(lines),
        )

    def check(self) -> None:
        """Raises JobFailedError if the attempt is over."""
        if self.running.is_ended:
            raise JobFailedError("the installation of packages was ended, because the attempt is over")

    def _run(self, argv: list[str], env: dict[str, str], take: Callable[[str], None]) -> CommandResult:
        start = Start(argv, env, [])
        if self.container is not None:
            start = self.container.start(
                shlex.join(argv), env, client_environment=dict(os.environ), working_dir=str(self.working_dir)
            )
        return self.running.run(
            Command(
                start.argv,
                env=start.env,
                working_dir=self.working_dir,
                grace_s=_GRACE_S,
                on_line=take,
                mask=self.mask,
                finish=start.finish,
            )
        )

    def find_interpreter(self, version: str) -> PythonBelow:
        """A Python of a minor version on this machine; uv fetches one where it is there.

        Raises:
            HopelessError: there is none.
        """
        path = shutil.which(f"python{version}", path=self.environ.get("PATH"))
        uv = find_uv(self.environ)
        if path is None and uv is not None:
            path = self._fetch_interpreter(uv, version)
        if path is not None and (found := _ask_interpreter(path)) is not None:
            return found
        raise HopelessError(
            f"job_setting.python.version is {version}, and this node has no python{version}; the cluster's is "
            f"{sys.version_info[0]}.{sys.version_info[1]}. Install it, or uv, on the cluster's machines, or leave "
            "'version' out"
        )

    def _fetch_interpreter(self, uv: str, version: str) -> str | None:
        for arguments in (["find"], ["install", "--no-bin"], ["find"]):
            found = subprocess.run(
                [uv, "python", *arguments, version],
                env=self._environment(uv),
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
            if found.returncode == 0 and arguments == ["find"]:
                return found.stdout.strip()
            for line in found.stderr.splitlines() if arguments != ["find"] else ():
                self.write(line)
        return None

    def _uv_command(self, uv: str, layer: Layer) -> list[str]:
        # Links to uv's cache would make its files read-only together with the environment's.
        options = ["--python", str(layer.python), "--link-mode", "copy", "--compile-bytecode", "--no-progress"]
        return [uv, "pip", "install", *options]

    def _environment(self, uv: str | None) -> dict[str, str]:
        environ = {name: value for name, value in self.environ.items() if name not in _DROPPED}
        environ.pop("VIRTUAL_ENV", None)
        if uv is not None:
            # Whatever says where pip finds packages here, such as /etc/pip.conf, holds for uv as well.
            environ = {**_read_index_settings(environ), **environ}
        # A file of pip's settings may say the contrary, and packages would go into the directory of Ray's user.
        return {**environ, "PIP_USER": "0", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def find_uv(environ: Mapping[str, str]) -> str | None:
    """The program uv: beside this interpreter, or on the ``PATH``."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv", path=environ.get("PATH"))


def give_pip(layer: Layer) -> None:
    """Put this process's pip into an environment that has none below; without it, a command could not install."""
    spec = importlib.util.find_spec("pip")
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin).parent
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, layer.package_dir / "pip", ignore=leave_out, dirs_exist_ok=True)
    for facts in source.parent.glob("pip-*.dist-info"):
        shutil.copytree(facts, layer.package_dir / facts.name, dirs_exist_ok=True)


def find_reason(lines: Sequence[str]) -> str | None:
    """What the last words of pip or uv say of the cause, and what to do; None where it is not known."""
    return next((reason for pattern, reason in _REASONS if any(map(pattern.search, lines))), None)


def _ask_interpreter(path: str) -> PythonBelow | None:
    program = "import sys; print(getattr(sys, '_base_executable', sys.executable)); print(sys.version.split()[0])"
    asked = subprocess.run([path, "-I", "-c", program], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        return None
    interpreter, version = asked.stdout.split("\n")[:2]
    return PythonBelow(interpreter, version, ())


def _read_index_settings(environ: Mapping[str, str]) -> dict[str, str]:
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], env=environ, capture_output=True, text=True, check=False
    )
    found: dict[str, str] = {}
    for line in asked.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in ("index-url", "extra-index-url", "find-links", "no-index"):
            try:
                text = str(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                continue
            found[f"UV_{option.replace('-', '_').upper()}"] = ",".join(text.split()) if option == "find-links" else text
    return found
