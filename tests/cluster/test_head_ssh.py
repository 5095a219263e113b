"""Commands on a cluster's head and tunnels to it, by a real ssh to a real sshd on loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from support.loopback_sshd import MISSING, SSH, SSHD, serve_ssh
from support.storage_servers import find_free_port
from support.text_server import serve_text

from periflow_ray.cluster import secrets as secrets_module
from periflow_ray.cluster.records import ClusterRecord
from periflow_ray.cluster.secrets import ClusterSecrets
from periflow_ray.cluster.ssh import Tunnel, in_login_shell, run_on_head, ssh_command
from periflow_ray.errors import ClusterError

WaitUntil = Callable[[Callable[[], bool]], None]
# The fewest that ssh takes by itself; the product's take seconds to make on a busy machine.
KEY_BITS = 2048
RECORD = ClusterRecord(
    name="mine",
    cloud="aws",
    region="us-east-1",
    vm_names=["aws-16gb-t4-1g-us-east-1"],
    max_num_nodes=2,
    idle_timeout_minutes=10,
    created_by="kim",
    created_on="kims-laptop",
    created_unix_s=0.0,
    status="running",
    head_address="127.0.0.1",
)
# Spaces, both kinds of quotes, what a shell replaces, and nothing at all.
HARD_WORDS = ["a  b", "it's", '"so"', "$HOME `id` $(id)", "*", "back\\slash", "a;b&c|d>e", "-n", "", "naïve\nline"]
PRINT_WORDS = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
# What a process does that opens a tunnel and then lives on until it is killed.
OPEN_A_TUNNEL = """
import sys
from pathlib import Path
from periflow_ray.cluster.records import ClusterRecord
from periflow_ray.cluster.secrets import ClusterSecrets
from periflow_ray.cluster.ssh import Tunnel
record = ClusterRecord("mine", "aws", "us-east-1", [], 2, 10, "kim", "here", 0.0, "running", "127.0.0.1")
tunnel = Tunnel(record, ClusterSecrets(Path(sys.argv[1])), port=int(sys.argv[2]))
print(tunnel.local_port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> ClusterSecrets:
    # As on macOS, whose directory for such files has a space in its name.
    secrets = ClusterSecrets(tmp_path_factory.mktemp("clusters") / "Application Support" / "mine-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets_module, "_KEY_BITS", KEY_BITS)
        secrets.make()
    return secrets


@pytest.fixture(scope="module")
def _sshd(secrets: ClusterSecrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if SSHD is None or SSH is None:
        pytest.skip(MISSING)
    directory = tmp_path_factory.mktemp("sshd")
    home = tmp_path_factory.mktemp("home")
    # As on a node, whose setup writes its environment there.
    (home / ".bashrc").write_text("export ON_THE_NODE=yes\necho hello, user\n")
    (home / ".bash_profile").write_text(". ~/.bashrc\n")
    with serve_ssh(directory, secrets.read_public_key(), {"HOME": str(home)}) as bin_dir:
        yield bin_dir


@pytest.fixture
def head(_sshd: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterRecord:
    """A cluster whose head is this machine."""
    monkeypatch.setenv("PATH", f"{_sshd}:{os.environ['PATH']}")
    return RECORD


@pytest.fixture
def dashboard() -> Iterator[int]:
    """The port of a web server on the head's loopback."""

    with serve_text("the dashboard") as server:
        yield server.server_port


def run_locally(argv: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """What sshd does with a command line: gives it to the user's shell."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", "-c", in_login_shell(argv)], env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_the_key_the_error_names_the_machine_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        ssh_command(RECORD, ClusterSecrets(tmp_path / "mine-1"))
    assert str(caught.value) == (
        "this machine does not have the key of cluster 'mine', which was made on 'kims-laptop'. Go on there, or copy "
        f"its directory to '{tmp_path}/mine-1', readable for you alone."
    )


def test_a_cluster_without_a_head_is_not_reached(secrets: ClusterSecrets) -> None:
    with pytest.raises(ClusterError, match=r"has no head yet\. See what it does: periflow-ray cluster status mine"):
        ssh_command(dataclasses.replace(RECORD, head_address=None), secrets)


@pytest.mark.skipif(SSH is None, reason=MISSING)
def test_nothing_of_the_user_s_own_configuration_counts(secrets: ClusterSecrets, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  ProxyJump bastion\n  ControlMaster auto\n  User kim\n")
    beginning, *rest = ssh_command(RECORD, secrets)
    # -G prints what ssh would do with all that it was given.
    printed = subprocess.run(
        [beginning, "-G", *rest],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    settings = dict(line.split(" ", 1) for line in printed.stdout.splitlines() if " " in line)
    assert (settings["user"], settings["hostname"]) == ("ubuntu", "127.0.0.1")
    assert settings["controlmaster"] == "false"
    assert "proxyjump" not in settings
    assert settings["identityfile"] == str(secrets.key_path)
    # No other key, no agent's and no password: it would be asked for again and again.
    assert (settings["identitiesonly"], settings["batchmode"]) == ("yes", "yes")
    assert settings["userknownhostsfile"].strip("'\"") == str(secrets.known_hosts_path)


def test_words_arrive_on_the_head_unsplit(tmp_path: Path) -> None:
    done = run_locally([*PRINT_WORDS, *HARD_WORDS], tmp_path)
    assert (json.loads(done.stdout), done.stderr) == (HARD_WORDS, "")


def test_a_command_on_the_head_has_what_a_user_s_shell_there_has(tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text(f". {shlex.quote(str(tmp_path))}/.bashrc\n")
    (tmp_path / ".bashrc").write_text('case $- in *i*) ;; *) return ;; esac\nexport ON_THE_NODE="yes it is"\n')
    done = run_locally(["sh", "-c", 'echo "$ON_THE_NODE"; echo wrong >&2; exit 7'], tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("yes it is\n", "wrong\n", 7)


def test_a_command_runs_on_the_head_and_gives_its_output(head: ClusterRecord, secrets: ClusterSecrets) -> None:
    answer = run_on_head(head, secrets, [*PRINT_WORDS, *HARD_WORDS])
    assert json.loads(answer.splitlines()[-1]) == HARD_WORDS
    # The head's own key was kept, so that another machine at this address is not taken for it.
    assert secrets.known_hosts_path.read_text().startswith("[127.0.0.1]:")
    assert "yes" in run_on_head(head, secrets, ["printenv", "ON_THE_NODE"])
    assert run_on_head(head, secrets, ["cat"], stdin="what it reads\n").endswith("what it reads\n")


def test_a_command_that_fails_on_the_head_says_how(head: ClusterRecord, secrets: ClusterSecrets) -> None:
    with pytest.raises(ClusterError) as caught:
        run_on_head(head, secrets, ["sh", "-c", "echo first >&2; echo no such file >&2; exit 3"])
    assert str(caught.value) == (
        "the head of cluster 'mine' at 127.0.0.1 failed at 'sh ...' (exit code 3):\n  first\n  no such file"
    )


def test_a_command_that_takes_too_long_is_given_up(head: ClusterRecord, secrets: ClusterSecrets) -> None:
    with pytest.raises(ClusterError, match=r"did not do 'sleep \.\.\.' within 1 s"):
        run_on_head(head, secrets, ["sleep", "5"], timeout_s=1.0)


def test_a_machine_without_ssh_is_told_how_to_get_it(
    secrets: ClusterSecrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="apt-get install openssh-client"):
        run_on_head(RECORD, secrets, ["true"])


def test_a_tunnel_leads_to_the_head_s_loopback_until_it_is_closed(
    head: ClusterRecord, secrets: ClusterSecrets, dashboard: int
) -> None:
    tunnel = Tunnel(head, secrets, port=dashboard)
    assert requests.get(tunnel.address, timeout=10).text == "the dashboard"
    assert tunnel.is_open
    tunnel.close()
    assert not tunnel.is_open
    with pytest.raises(requests.ConnectionError):
        requests.get(tunnel.address, timeout=10)


def test_a_tunnel_to_a_head_that_lets_nobody_in_is_an_error(
    head: ClusterRecord, tmp_path: Path, dashboard: int
) -> None:
    strangers = ClusterSecrets(tmp_path / "strangers")
    strangers.directory.mkdir()
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(strangers.key_path)]
    subprocess.run(keygen, check=True)
    strangers.token_path.touch()
    with pytest.raises(ClusterError) as caught:
        Tunnel(head, strangers, port=dashboard)
    assert "cannot be reached at 127.0.0.1 by SSH" in str(caught.value)
    assert "Permission denied" in str(caught.value)


def test_another_machine_at_the_head_s_address_is_not_taken_for_it(
    head: ClusterRecord, secrets: ClusterSecrets, dashboard: int
) -> None:
    run_on_head(head, secrets, ["true"])
    kept = secrets.known_hosts_path.read_text().splitlines()
    host, kind, _ = kept[0].split(" ", 2)
    another = secrets.public_key_path.with_name("another")
    keygen = ["ssh-keygen", "-q", "-t", kind.removeprefix("ssh-"), "-N", "", "-f", str(another)]
    subprocess.run(keygen, check=True)
    secrets.known_hosts_path.write_text(f"{host} {another.with_suffix('.pub').read_text()}")
    try:
        with pytest.raises(ClusterError, match=r"(?i)host key verification failed"):
            Tunnel(head, secrets, port=dashboard)
    finally:
        # As after a new head was launched.
        secrets.forget_hosts()
    assert run_on_head(head, secrets, ["echo", "again"]).endswith("again\n")


def test_a_port_that_something_else_has_is_not_taken_for_the_tunnel_s(
    head: ClusterRecord, secrets: ClusterSecrets, dashboard: int
) -> None:
    with pytest.raises(ClusterError, match=f"port {dashboard} of this machine is in use"):
        Tunnel(head, secrets, port=find_free_port(), local_port=dashboard)


def test_a_tunnel_ends_with_the_process_that_opened_it_even_if_that_is_killed(
    head: ClusterRecord, secrets: ClusterSecrets, dashboard: int, wait_until: WaitUntil
) -> None:
    command = [sys.executable, "-c", OPEN_A_TUNNEL, str(secrets.directory), str(dashboard)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as opener:
        assert opener.stdout is not None
        local_port = int(opener.stdout.readline())
        address = f"http://127.0.0.1:{local_port}"
        assert requests.get(address, timeout=10).text == "the dashboard"
        opener.send_signal(signal.SIGKILL)

    def is_gone() -> bool:
        try:
            requests.get(address, timeout=10)
        except requests.ConnectionError:
            return True
        return False

    wait_until(is_gone)
    wait_until(lambda: not find_processes(f"127.0.0.1:{local_port}:127.0.0.1:{dashboard}"))


def find_processes(words: str) -> list[int]:
    """Processes that have these words in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
