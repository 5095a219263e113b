"""SSH to a cluster's head: commands, and tunnels to what listens on its loopback."""

from __future__ import annotations

import atexit
import contextlib
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence

from periflow_ray.cluster.records import ClusterRecord
from periflow_ray.cluster.secrets import ClusterSecrets
from periflow_ray.errors import ClusterError

USER = "ubuntu"
DASHBOARD_PORT = 8265
_CONNECT_TIMEOUT_S = 15
_TUNNEL_TIMEOUT_S = 30.0
_POLL_S = 0.05


def ssh_command(record: ClusterRecord, secrets: ClusterSecrets, *options: str) -> list[str]:
    """The beginning of a command line; what follows runs on the head.

    Raises:
        ClusterError: the cluster has no head yet, or this machine does not have its key.
    """
    if record.head_address is None:
        raise ClusterError(
            f"cluster '{record.name}' has no head yet. See what it does: periflow-ray cluster status {record.name}"
        )
    if not secrets.are_there:
        raise ClusterError(
            f"this machine does not have the key of cluster '{record.name}', which was made on "
            f"'{record.created_on}'. Go on there, or copy its directory to '{secrets.directory}', readable for you "
            "alone."
        )
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": str(_CONNECT_TIMEOUT_S),
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        # Its key is taken at the first meeting, and asked for from then on.
        "StrictHostKeyChecking": "accept-new",
        # In quotes: it is a list of files, with spaces between them, and macOS has one in where such files are.
        "UserKnownHostsFile": f'"{secrets.known_hosts_path}"',
    }
    given = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    # Nothing of the user's own configuration: a proxy or a multiplexed connection there is not meant for it.
    return ["ssh", "-F", "none", "-i", str(secrets.key_path), *given, *options, f"{USER}@{record.head_address}"]


def run_on_head(
    record: ClusterRecord, secrets: ClusterSecrets, argv: Sequence[str], *, stdin: str = "", timeout_s: float = 60.0
) -> str:
    """Run a command in the head's login shell and give its output.

    Raises:
        ClusterError: it cannot be reached, the command failed, or took too long.
    """
    command = [*ssh_command(record, secrets), in_login_shell(argv)]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError as err:
        raise ClusterError(
            "there is no 'ssh' on this machine. On Debian or Ubuntu: apt-get install openssh-client"
        ) from err
    except subprocess.TimeoutExpired as err:
        raise ClusterError(
            f"the head of cluster '{record.name}' did not do '{argv[0]} ...' within {timeout_s:.0f} s"
        ) from err
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise ClusterError(
            f"the head of cluster '{record.name}' at {record.head_address} failed at '{argv[0]} ...' (exit code "
            f"{done.returncode}):" + "".join(f"\n  {line}" for line in words)
        )
    return done.stdout


def in_login_shell(argv: Sequence[str]) -> str:
    """A command line for the head that runs a command with what a user's own shell there has."""
    # An interactive shell, because the nodes' environment is in ~/.bashrc; it complains of having no terminal.
    words = shlex.quote(f"exec 2>&3 3>&-; exec {shlex.join(argv)}")
    return f"exec bash -lic {words} 3>&2 2>/dev/null"


class Tunnel:
    """A port of this machine's loopback that leads to one of the head's; it ends with this process, however that ends.

    Raises:
        ClusterError: the head cannot be reached, or ``local_port`` is in use.
    """

    def __init__(
        self,
        record: ClusterRecord,
        secrets: ClusterSecrets,
        *,
        port: int = DASHBOARD_PORT,
        local_port: int | None = None,
    ) -> None:
        if local_port is not None and _answers(local_port):
            raise ClusterError(f"port {local_port} of this machine is in use already. Choose another one: --port")
        self.local_port = local_port or _find_free_port()
        forward = f"127.0.0.1:{self.local_port}:127.0.0.1:{port}"
        command = ssh_command(record, secrets, "-o", "ExitOnForwardFailure=yes", "-L", forward)
        # What runs there ends at the end of its standard input, which is this process's to close, even by dying.
        self._ssh = subprocess.Popen(
            [*command, "cat >/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)
        deadline = time.monotonic() + _TUNNEL_TIMEOUT_S
        while not _answers(self.local_port):
            if self._ssh.poll() is not None or time.monotonic() > deadline:
                self._ssh.kill()
                words = self._ssh.communicate()[1].strip()
                raise ClusterError(
                    f"the head of cluster '{record.name}' cannot be reached at {record.head_address} by SSH: "
                    f"{words or 'no answer'}. Is it up (periflow-ray cluster status {record.name}), and may this "
                    f"machine's address reach it? Let it in: periflow-ray cluster up --name {record.name}"
                )
            time.sleep(_POLL_S)

    @property
    def address(self) -> str:
        """As an HTTP client takes it."""
        return f"http://127.0.0.1:{self.local_port}"

    @property
    def is_open(self) -> bool:
        """Whether it leads anywhere still."""
        return self._ssh.poll() is None

    def close(self) -> None:
        """End it."""
        atexit.unregister(self.close)
        with contextlib.suppress(OSError):
            self._ssh.kill()
        self._ssh.wait()
        for stream in (self._ssh.stdin, self._ssh.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
