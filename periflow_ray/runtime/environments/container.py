"""A job's command in a container: the directories it sees at their real paths, what it inherits, how it ends.

One container for each start of the command. Its first process starts the command and passes SIGTERM on to all that
runs in it; when the command has ended, the kernel ends the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import periflow_ray.sdk
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.environments.engine import Engine, Image
from periflow_ray.spec.image import names_of

# By it a command in any Python finds the SDK.
SHIM_DIR = Path(periflow_ray.sdk.__file__).parent / "shim"
_LABEL = "periflow.sandbox"
# An image may have no bash.
_ENTRY = 'exec "$(command -v bash || echo sh)" -c "$0" "$1"'
# The first process of a container ignores SIGTERM unless it asks for it, and so would a script that is the first one.
# ``kill -1`` reaches every other process of the container.
_FIRST_PROCESS = """\
for name in $PERIFLOW_GIVEN; do
    eval "export $name=\\"\\$PERIFLOW_GIVEN_$name\\""
    unset "PERIFLOW_GIVEN_$name"
done
export PYTHONPATH="$PERIFLOW_PYTHON_PATH${PYTHONPATH:+:$PYTHONPATH}"
[ -z "$PERIFLOW_PROGRAM_PATH" ] || export PATH="$PERIFLOW_PROGRAM_PATH:$PATH"
mark=$PERIFLOW_MEMORY_MARK
unset name PERIFLOW_GIVEN PERIFLOW_PYTHON_PATH PERIFLOW_PROGRAM_PATH PERIFLOW_MEMORY_MARK
# With other processes' numbers (--pid=host) -1 would be all of the machine.
trap 'if [ $$ = 1 ]; then kill -TERM -1; else kill -TERM $pid; fi 2>/dev/null' TERM
# What a shell starts in the background ignores Ctrl-C.
(trap - INT QUIT; exec "$(command -v bash || echo sh)" -c "$0") </dev/null &
pid=$!
# A shell tells of a process that a signal ended; the job's log needs no word of this one.
exec 2>/dev/null
wait $pid
code=$?
while kill -0 $pid 2>/dev/null; do
    wait $pid
    code=$?
done
# Of cgroups, version 2 and 1.
for events in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    while read -r name value; do
        if [ "$name" = oom_kill ] && [ "$value" != 0 ]; then : >"$mark"; fi
    done <$events
done
exit $code
"""
# What the engine's own client, its libraries or the shell of the first process would act on. Such a variable goes past
# them under another name, and not as an argument, which other users of the machine could read.
_OF_CLIENT = frozenset({"PATH", "HOME", "USER", "TMPDIR", "SHELL", "BASH_ENV"})
_OF_CLIENT_PREFIXES = (
    *("LD_", "XDG_", "DBUS_", "LISTEN_", "NOTIFY_", "GODEBUG"),
    *("DOCKER_", "CONTAINER", "_CONTAINER", "PODMAN_", "REGISTRY_", "BUILDAH_", "STORAGE_"),
)
# Of the machine, also a container's: its network, its devices.
_OF_MACHINE = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        *(name for lower in ("http_proxy", "https_proxy", "no_proxy", "all_proxy") for name in (lower, lower.upper())),
    }
)
_OF_MACHINE_PREFIXES = ("NCCL_", "GLOO_", "UCX_", "FI_")
# What Podman and Docker begin a line with when they cannot start a container.
_ENGINE_WORDS = ("Error: ", "docker: ")
_GPU_DEVICE = Path("/dev/nvidiactl")
_CDI_DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
_INFINIBAND = Path("/dev/infiniband")


@dataclass(frozen=True)
class Bind:
    """A directory of this machine at a path of the container."""

    source: Path
    target: str
    is_read_only: bool = False


@dataclass(frozen=True)
class Start:
    """How a command is started and ended: a program with its environment, and the program that ends it.

    ``memory_mark`` is a file that is there afterwards if the kernel ended something for want of memory.
    """

    argv: list[str]
    env: dict[str, str]
    finish: list[str]
    memory_mark: Path | None = None


@dataclass(frozen=True)
class Container:
    """What a job's commands on this node run in.

    Args:
        binds: what they see of this machine; the sandbox and this package come by themselves.
        options: more of the engine's, the user's own.
    """

    engine: Engine
    image: Image
    sandbox: Path
    binds: Sequence[Bind]
    options: Sequence[str] = ()

    def start(
        self,
        command: str,
        environment: Mapping[str, str],
        *,
        client_environment: Mapping[str, str],
        working_dir: str,
        python_path: Sequence[str] = (),
        program_path: Sequence[str] = (),
    ) -> Start:
        """What starts a command in a container of its own.

        Args:
            command: shell text.
            environment: what the command gets beside the image's own variables.
            client_environment: of the engine's client.
            working_dir: path in the container.
            python_path: directories of modules, before the image's.
            program_path: directories of programs, before the image's ``PATH``.
        """
        name = f"periflow-{uuid.uuid4().hex[:12]}"
        package = Path(periflow_ray.sdk.__file__).parent.parent
        memory_mark = self.sandbox / f"memory-full-{name}"
        of_client = sorted(key for key in environment if _is_of_client(key))
        given = {
            **{f"PERIFLOW_GIVEN_{key}" if _is_of_client(key) else key: value for key, value in environment.items()},
            "PERIFLOW_GIVEN": " ".join(of_client),
            "PERIFLOW_PYTHON_PATH": os.pathsep.join([str(SHIM_DIR), *python_path]),
            "PERIFLOW_PROGRAM_PATH": os.pathsep.join(program_path),
            "PERIFLOW_MEMORY_MARK": str(memory_mark),
        }
        argv = [
            self.engine.program,
            "run",
            "--name",
            name,
            "--label",
            label_of(self.sandbox),
            "--network=host",
            f"--user={self.engine.user}",
            # With --ipc=host, which many people use, the node's own is there.
            *([] if self._has_option("--ipc") else [f"--shm-size={_shared_memory_bytes()}"]),
            "--security-opt=label=disable",
            "--pull=never",
            # The job's log has it all; the engine's own would be a second copy on the node's disk.
            "--log-driver=none",
            *([] if self._has_option("--gpus") else _gpu_options(self.engine)),
            *_network_device_options(),
            *(
                _mount(bind)
                for bind in _in_order(
                    [Bind(package, str(package), True), Bind(self.sandbox, str(self.sandbox)), *self.binds]
                )
            ),
            *(part for key in sorted(given) for part in ("--env", key)),
            "--env=PERIFLOW_COMMAND_ID",
            f"--workdir={working_dir}",
            "--entrypoint=sh",
            *self.options,
            self.image.id,
            "-c",
            _ENTRY,
            _FIRST_PROCESS,
            command,
        ]
        return Start(argv, {**client_environment, **given}, self.engine.remove_command(name), memory_mark)

    def with_bind(self, bind: Bind) -> Container:
        """The same, which sees one more directory."""
        return dataclasses.replace(self, binds=(*self.binds, bind))

    def _has_option(self, name: str) -> bool:
        return any(name in names_of(option) for option in self.options)


def explain_refusal(exit_code: int | None, lines: Sequence[str]) -> str | None:
    """What to do where it was the engine that did not start a container, by its last words; None where it was not."""
    said = next((line for line in reversed(lines) if line.startswith(_ENGINE_WORDS)), None)
    if exit_code not in (125, 126, 127) or said is None:
        return None
    if re.search(r'exec: \\*"sh\\*"', said):
        return "the image has no shell (sh), with which a command is started, or a mount path such as /usr hides it."
    return (
        "the container engine did not start the container, for the reason that it gives in its last line. Look at "
        "docker.options and the mount paths."
    )


def label_of(sandbox: Path) -> str:
    """By what the containers of a sandbox are known."""
    return f"{_LABEL}={sandbox}"


def binds_of(plan: JobPlan, path_of: Callable[[str], Path], dataset: Path | None) -> list[Bind]:
    """The plan's mounts as they appear in a container.

    Args:
        path_of: where a mount path is on this machine.
        dataset: where the dataset's files are, to which the mount path on this machine is only a link.
    """
    binds = []
    paths = [mount.path for mount in plan.mounts]
    for mount in plan.mounts:
        is_inside = any(mount.path.startswith(f"{other.rstrip('/')}/") for other in paths if other != mount.path)
        if mount.kind == "data" and dataset is not None:
            # Where a link inside another mount leads.
            binds.append(Bind(dataset, str(dataset), is_read_only=True))
            if not is_inside:
                binds.append(Bind(dataset, mount.path, is_read_only=True))
        elif not is_inside:
            binds.append(Bind(path_of(mount.path), mount.path))
    return binds


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a container's command gets of this machine's variables: those of its network and devices,
    and the keys of clouds."""
    return {
        name: value for name, value in environ.items() if name in _OF_MACHINE or name.startswith(_OF_MACHINE_PREFIXES)
    }


def _is_of_client(name: str) -> bool:
    # Nothing else is a name for a shell.
    return name.isidentifier() and (name in _OF_CLIENT or name.startswith(_OF_CLIENT_PREFIXES))


def _in_order(binds: Sequence[Bind]) -> list[Bind]:
    """Those inside others after them."""
    return sorted(binds, key=lambda bind: bind.target.count("/"))


def _mount(bind: Bind) -> str:
    fields = [
        "type=bind",
        f"source={bind.source}",
        f"target={bind.target}",
        *(["readonly"] if bind.is_read_only else []),
    ]
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(fields)
    return f"--mount={row.getvalue()}"


def _shared_memory_bytes() -> int:
    """As much as this machine has: data loaders need more than the 64 MB of engines."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 64 << 20
    return max(64 << 20, found.f_blocks * found.f_frsize)


def has_gpus(engine: Engine) -> bool:
    """Whether this machine's GPUs, if it has some, are in the engine's containers."""
    if not engine.is_podman or not _GPU_DEVICE.exists():
        return True
    return any(directory.is_dir() and any(directory.iterdir()) for directory in _CDI_DIRECTORIES)


def _gpu_options(engine: Engine) -> list[str]:
    if not _GPU_DEVICE.exists() or not has_gpus(engine):
        return []
    return ["--device=nvidia.com/gpu=all"] if engine.is_podman else ["--gpus=all"]


def _network_device_options() -> list[str]:
    if not _INFINIBAND.is_dir():
        return []
    return [f"--device={_INFINIBAND}", "--cap-add=IPC_LOCK", "--ulimit=memlock=-1:-1"]
