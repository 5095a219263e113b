"""A real sshd on loopback that is a cluster's head: ``serve_ssh`` starts it, and a cluster's own key opens it.

The product's ``ssh`` is the real one too. Of its command line only the user and the port change, which are those of a
head in the product and of this machine here; a program of that name before it on the PATH sees to that.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.storage_servers import find_free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SSH = shutil.which("ssh")
MISSING = "a real sshd and ssh are needed: apt-get install openssh-server openssh-client"
_DEADLINE_S = 20.0
_SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv {variables}
"""
# Run as root, sshd wants a directory of its own in /run; this one is seen by nobody else.
_AS_ROOT = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"', "sshd"]


@contextlib.contextmanager
def serve_ssh(directory: Path, public_key: str, variables: Mapping[str, str]) -> Iterator[Path]:
    """Serve until the end of the block.

    Args:
        directory: for the server's files.
        public_key: of whoever may come in.
        variables: of the environment of what runs there.
    Returns:
        A directory for the beginning of the PATH, with an ``ssh`` that comes here.
    """
    assert SSHD is not None, MISSING
    assert SSH is not None, MISSING
    port = find_free_port()
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "host_key")]
    subprocess.run(keygen, check=True, timeout=_DEADLINE_S)
    (directory / "authorized_keys").write_text(public_key + "\n")
    given = " ".join(f"{name}={value}" for name, value in variables.items())
    (directory / "sshd.conf").write_text(_SETTINGS.format(port=port, directory=directory, variables=given))
    command = [SSHD, "-D", "-e", "-f", str(directory / "sshd.conf")]
    bin_dir = directory / "bin"
    bin_dir.mkdir()
    (bin_dir / "ssh").write_text(f'#!/bin/sh\nexec {SSH} -l {getpass.getuser()} -p {port} "$@"\n')
    (bin_dir / "ssh").chmod(0o700)
    with open(directory / "sshd.log", "wb") as log:
        server = subprocess.Popen([*(_AS_ROOT if os.geteuid() == 0 else []), *command], stderr=log)
    try:
        _wait_for_answer(server, port, directory / "sshd.log")
        yield bin_dir
    finally:
        server.terminate()
        server.wait(_DEADLINE_S)


def _wait_for_answer(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshd does not answer:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)
