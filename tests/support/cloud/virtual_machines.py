"""Virtual machines of the box: booted, given a notice, and ended. Runs in the provider's network, as root."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from support.trees import write_tree

REPOSITORY_DIR = Path(__file__).parents[3]
PROVIDER_ADDRESS = "172.31.255.254"
_PROVIDER_HARDWARE_ADDRESS = "02:00:ac:1f:ff:fe"
AWS_PORT = 5566
# What AWS's SDKs take from the environment.
AWS_ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://{PROVIDER_ADDRESS}:{AWS_PORT}",
    "AWS_ACCESS_KEY_ID": "box",
    "AWS_SECRET_ACCESS_KEY": "box-secret",
}
# Two networks of one wire: the nodes' own addresses and those by which others reach them. The user's machine is on the
# third.
PRIVATE_NETWORK, PUBLIC_NETWORK, USERS_NETWORK = "172.31.0.0/16", "54.214.0.0/16", "10.77.0.0/24"
_INIT = Path(__file__).with_name("virtual_machine.sh")
_UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child=KILL"]
_COMMAND_TIMEOUT_S = 30.0
_numbers = itertools.count(1)


class VirtualMachine:
    """One machine that runs; ``address`` is its private one.

    Args:
        state_dir: a directory of its own, deleted with it.
        cloud: whose metadata service it has.
        name: its host name.
        public_key: of the user ``ubuntu``.
        image: files of that user's home directory, by relative path.
        metadata: files that its metadata service has from the start.
        hosts: lines for its /etc/hosts.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        cloud: str,
        name: str,
        address: str,
        public_address: str | None,
        public_key: str,
        image: Mapping[str, str],
        metadata: Mapping[str, str] = MappingProxyType({}),
        hosts: Iterable[str] = (),
    ) -> None:
        self.address = address
        self._state_dir = state_dir
        self.metadata_dir = state_dir / "metadata"
        self.metadata_dir.mkdir(parents=True)
        (state_dir / "key.pub").write_text(public_key.strip() + "\n")
        (state_dir / "hosts").write_text("".join(f"{line}\n" for line in hosts))
        for folder, files in {"home": image, "metadata": metadata}.items():
            write_tree(state_dir / folder, {path: content.encode() for path, content in files.items()})
        arguments = [state_dir, cloud, name, address, REPOSITORY_DIR, sys.executable]
        with open(state_dir / "log", "wb") as log:
            self._init = subprocess.Popen(
                [*_UNSHARE, "bash", str(_INIT), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._connect(public_address)
        except BaseException:
            self.end()
            raise

    def _connect(self, public_address: str | None) -> None:
        wire = f"vm{next(_numbers)}"
        inside = ["nsenter", f"--target={self._init.pid}", "--net", "--", "ip"]
        _run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", str(self._init.pid))
        _run("ip", "link", "set", "dev", wire, "master", "bridge", "up")
        _run(*inside, "address", "add", f"{self.address}/16", "dev", "eth0")
        if public_address is not None:
            _run(*inside, "address", "add", f"{public_address}/32", "dev", "eth0")
        _run(*inside, "link", "set", "dev", "eth0", "up")
        for network in (PUBLIC_NETWORK, USERS_NETWORK):
            _run(*inside, "route", "add", network, "dev", "eth0", "src", self.address)

    def read_log(self) -> str:
        """What its first process and its sshd have said."""
        return (self._state_dir / "log").read_text(errors="replace")

    def end(self) -> None:
        """Take its power: every process on it ends at once, and its disk is gone."""
        self._init.kill()
        self._init.wait()
        assert self._init.stdin is not None
        self._init.stdin.close()
        shutil.rmtree(self._state_dir, ignore_errors=True)


def prepare_network() -> None:
    """Give the provider its address on the bridge; call once, in the bridge's network."""
    # A bridge has the lowest hardware address of its ports unless it is given one. With a machine that comes or goes it
    # would change, and whoever knows the old one could not reach the provider for up to a minute.
    _run("ip", "link", "set", "dev", "bridge", "address", _PROVIDER_HARDWARE_ADDRESS)
    _run("ip", "address", "add", f"{PROVIDER_ADDRESS}/16", "dev", "bridge")
    for network in (PUBLIC_NETWORK, USERS_NETWORK):
        _run("ip", "route", "add", network, "dev", "bridge")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
