"""``cluster up``, ``down``, ``list``, ``status``, ``ssh``, ``tunnel`` and ``logs``, with an account in memory.

Long because a cluster's life is one story: all commands see the same record and the same account.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.provider_stand_in import ProviderStandIn, make_machine

from periflow_ray.cluster import lifecycle, providers
from periflow_ray.cluster.providers.provider import Finding, ProviderError, Resource
from periflow_ray.cluster.records import (
    ClusterAccount,
    ClusterRecord,
    MachineUse,
    read_cluster,
    write_account,
    write_cluster,
)
from periflow_ray.cluster.secrets import DIR_VARIABLE, find_secrets
from periflow_ray.store.root import StorageRoot

RunCli = Callable[..., Result]
VM = "aws-16gb-t4-1g-us-east-1"
NEW_YEAR_UNIX_S = 1_767_225_600.0
RECORD = ClusterRecord(
    name="mine",
    cloud="aws",
    region="us-east-1",
    vm_names=[VM],
    max_num_nodes=2,
    idle_timeout_minutes=10,
    created_by="kim",
    created_on="kims-laptop",
    created_unix_s=NEW_YEAR_UNIX_S,
    status="running",
    head_address="203.0.113.4",
)


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProviderStandIn:
    """The only cloud account that there is, whatever a command asks for."""
    stand_in = ProviderStandIn()
    monkeypatch.setattr(providers, "open_provider", lambda cloud, region: stand_in)
    monkeypatch.setattr(lifecycle, "_REMOVE_POLL_S", 0.01)
    monkeypatch.setattr(lifecycle, "_LATE_S", 0.01)
    monkeypatch.setenv(DIR_VARIABLE, str(tmp_path / "clusters"))
    return stand_in


@pytest.fixture
def wheels_dir(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "periflow_ray-1.0-py3-none-any.whl").touch()
    return tmp_path / "wheels"


@pytest.fixture
def up(run_cli: RunCli, wheels_dir: Path) -> RunCli:
    """``cluster up`` with what every machine has: an address and wheels."""
    return lambda *options, **given: run_cli(
        "cluster", "up", "--ssh-from", "203.0.113.7", "--wheels", str(wheels_dir), *options, **given
    )


@pytest.fixture
def shared_root(root: StorageRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage root counts as one that nodes can reach."""
    Path(root.uri).mkdir()
    monkeypatch.setattr(StorageRoot, "is_local", property(lambda root: False))


# cluster up.


def test_a_storage_root_on_this_machine_is_refused(up: RunCli, root: StorageRoot, account: ProviderStandIn) -> None:
    result = up("--vm", VM, "-y")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"storage root '{root.uri}' is a folder of this machine, and a cluster's nodes cannot" in result.stderr
    assert "--storage s3://BUCKET/PREFIX" in result.stderr
    assert account.preparations == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which VM type? Give --vm NAME. List them: periflow-ray vm list"),
        (["--name", "unknown"], "which VM type? Give --vm NAME"),
        (["--vm", "aws-16gb-t4-1g-us-east"], "Did you mean"),
        (["--vm", VM, "--name", "My Cluster"], "cluster name 'My Cluster' cannot be used"),
        (["--vm", VM, "--name", "-x"], "cannot be used"),
        (["--vm", VM, "--vm", "azure-16gb-t4-1g-eastus"], "are not in one region"),
        (["--vm", VM, "--ssh-from", "everybody"], "--ssh-from: 'everybody' is no range of IPv4 addresses"),
        (["--vm", VM, "--max-nodes", "0"], "1 to 1000 nodes, not 0"),
        (["--vm", VM, "--max-cost", "0"], "0.0 is not in the range x>0"),
        (["--vm", VM, "--autostop", "soon"], "soon"),
        (["--vm", VM, "--wheels", "nowhere"], "there is no wheel of periflow-ray in 'nowhere' for the nodes"),
    ],
)
def test_what_cannot_be_a_cluster_is_an_error_before_the_account_is_asked(
    up: RunCli, account: ProviderStandIn, options: list[str], message: str
) -> None:
    account.failure = ProviderError("the account was asked")
    result = up(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_what_the_account_lacks_stops_the_making(
    up: RunCli, root: StorageRoot, shared_root: None, account: ProviderStandIn
) -> None:
    account.findings = [
        Finding("credentials", "good", "account 1"),
        Finding("quota", "warning", "4 vCPUs, 2 nodes need 8"),
        Finding("network", "bad", "there is no default VPC in us-east-1."),
    ]
    result = up("--vm", VM, "--name", "mine", "-y")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        "ok       credentials: account 1\nwarning  quota: 4 vCPUs, 2 nodes need 8\nNO       network:" in result.stderr
    )
    assert "Error: cluster 'mine' cannot be made: there is no default VPC in us-east-1." in result.stderr
    assert (account.preparations, root.list_names("clusters")) == ([], [])


def test_without_a_yes_nothing_is_made_and_the_price_was_told(
    up: RunCli, root: StorageRoot, shared_root: None, account: ProviderStandIn
) -> None:
    result = up("--vm", VM, "--name", "mine", "--max-nodes", "3", input="n\n")
    assert result.exit_code == 1
    assert "Price per hour: head about $0.10, from now on until 'cluster down'." in result.stderr
    assert f"each worker {VM}: $0.53" in result.stderr
    assert "at most 3 workers at a time, so at most $1.67 in all" in result.stderr
    assert "Make cluster 'mine' in us-east-1?" in result.stderr
    assert (account.preparations, root.list_names("clusters")) == ([], [])


def test_a_cluster_with_other_vm_types_keeps_its_name(
    up: RunCli, root: StorageRoot, shared_root: None, account: ProviderStandIn
) -> None:
    write_cluster(root, RECORD)
    account.machines["mine"] = [make_machine()]
    result = up("--vm", f"{VM}-spot", "--name", "mine", "-y")
    assert result.exit_code == 2
    assert (
        f"Error: there is a cluster 'mine' with other VM types ({VM}). Give the new one another --name" in result.stderr
    )
    assert read_cluster(root, "mine") == RECORD
    assert account.preparations == []


def test_a_cluster_whose_key_is_elsewhere_is_gone_on_with_there(
    up: RunCli, root: StorageRoot, shared_root: None, account: ProviderStandIn
) -> None:
    write_cluster(root, RECORD)
    account.machines["mine"] = [make_machine()]
    result = up("--name", "mine", "-y")
    assert result.exit_code == 2
    assert "cluster 'mine' has machines in this account, and its key is on 'kims-laptop'. Go on there" in result.stderr
    assert read_cluster(root, "mine") == RECORD
    assert not find_secrets(root.uri, "mine").directory.exists()


# cluster down.


def test_a_cluster_is_down_when_the_account_has_nothing_of_it(
    run_cli: RunCli, root: StorageRoot, account: ProviderStandIn
) -> None:
    write_cluster(root, RECORD)
    account.machines["mine"] = [make_machine("i-1")]
    account.resources["mine"] = [Resource("security group", "sg-1")]
    secrets = find_secrets(root.uri, "mine")
    secrets.directory.mkdir(parents=True)
    result = run_cli("cluster", "down", "mine", "-y")
    assert (result.exit_code, result.stdout) == (
        0,
        "Cluster 'mine' is down: 2 resources removed, and us-east-1 has nothing of it any more.\n",
    )
    assert account.list_resources("mine") == []
    ended = read_cluster(root, "mine")
    assert (ended.status, ended.head_address, ended.ended_unix_s is None) == ("ended", None, False)
    assert not secrets.directory.exists()
    # The one in the list is known still, and there is nothing left to do.
    again = run_cli("cluster", "down", "mine", "-y")
    assert (again.exit_code, again.stdout) == (0, "There is nothing of cluster 'mine' in us-east-1.\n")


def test_without_a_yes_nothing_is_removed(run_cli: RunCli, root: StorageRoot, account: ProviderStandIn) -> None:
    write_cluster(root, RECORD)
    account.machines["mine"] = [make_machine("i-1")]
    result = run_cli("cluster", "down", "mine", input="n\n")
    assert result.exit_code == 1
    assert "instance i-1 (running)" in result.stderr
    assert (account.removed, read_cluster(root, "mine")) == ([], RECORD)


def test_what_stays_in_the_account_is_an_error_and_the_cluster_is_not_called_down(
    run_cli: RunCli, root: StorageRoot, account: ProviderStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_down = lifecycle.take_down
    monkeypatch.setattr(lifecycle, "take_down", lambda *given: take_down(*given, timeout_s=0.05))
    write_cluster(root, RECORD)
    account.resources["mine"] = [Resource("security group", "sg-1")]
    account.refusals["sg-1"] = "DependencyViolation: a database uses it"
    result = run_cli("cluster", "down", "mine", "-y")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith(
        "Error: of cluster 'mine' there is left in us-east-1, after all tries:\n"
        "  security group sg-1: DependencyViolation: a database uses it\n"
    )
    assert read_cluster(root, "mine").status == "ending"


def test_a_cluster_that_the_storage_root_does_not_know_is_found_by_a_vm_type(
    run_cli: RunCli, root: StorageRoot, account: ProviderStandIn
) -> None:
    account.machines["lost"] = [make_machine("i-1")]
    result = run_cli("cluster", "down", "lost", "-y")
    assert result.exit_code == 1
    assert f"there is no cluster 'lost' in storage root '{root.uri}'" in result.stderr
    assert "--vm with a VM type of that cloud and region" in result.stderr
    result = run_cli("cluster", "down", "lost", "--vm", VM, "-y")
    assert (result.exit_code, account.removed) == (0, ["i-1"])


# cluster list and cluster status.


def test_clusters_are_listed_with_what_they_cost(run_cli: RunCli, root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    write_cluster(root, dataclasses.replace(RECORD, name="gone", status="ended"))
    uses = {
        "i-1": MachineUse("head", 0.0, 7200.0, 0.096),
        "i-2": MachineUse(VM, 0.0, 3600.0, 0.526),
    }
    write_account(root, "mine", ClusterAccount(7200.0, uses))
    (document,) = json.loads(run_cli("cluster", "list", "-o", "json").stdout)
    assert (document["name"], document["status"], document["vms"]) == ("mine", "running", [VM])
    assert document["cost_usd"] == pytest.approx(0.718)
    names = {each["name"] for each in json.loads(run_cli("cluster", "list", "-a", "-o", "json").stdout)}
    assert names == {"mine", "gone"}


def test_a_cluster_s_status_is_what_the_account_has_and_why_it_waits(
    run_cli: RunCli, root: StorageRoot, account: ProviderStandIn
) -> None:
    write_cluster(root, dataclasses.replace(RECORD, autostop_s=1800.0, max_cost_usd=25.0))
    waits = [f"{VM}: the provider refused it: VcpuLimitExceeded: no more"]
    write_account(root, "mine", ClusterAccount(NEW_YEAR_UNIX_S, waits=waits))
    account.machines["mine"] = [make_machine(), make_machine("i-2", VM, setup="setting-up")]
    document = json.loads(run_cli("cluster", "status", "mine", "-o", "json").stdout)
    assert document["waits"] == waits
    assert [(each["id"], each["node_type"], each["setup"]) for each in document["machines"]] == [
        ("i-1", "head", "up-to-date"),
        ("i-2", VM, "setting-up"),
    ]
    assert document["usd_per_hour"] == pytest.approx(0.096 + 0.526)
    shown = " ".join(run_cli("cluster", "status", "mine").stdout.split())
    assert "VcpuLimitExceeded" in shown
    assert "$25.00" in shown


def test_a_cluster_that_ended_by_itself_says_why(run_cli: RunCli, root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    write_account(root, "mine", ClusterAccount(NEW_YEAR_UNIX_S, ended_because="no job has run for 30 minutes"))
    document = json.loads(run_cli("cluster", "status", "mine", "-o", "json").stdout)
    assert (document["machines"], document["ended_because"]) == ([], "no job has run for 30 minutes")


# The head.


@pytest.mark.parametrize("command", [["status", "nobody"], ["ssh", "nobody"], ["tunnel", "nobody"], ["logs", "nobody"]])
def test_an_unknown_cluster_is_an_error_that_says_where_the_known_ones_are(
    run_cli: RunCli, root: StorageRoot, command: list[str]
) -> None:
    result = run_cli("cluster", *command)
    assert (result.exit_code, result.stdout, result.stderr) == (
        1,
        "",
        f"Error: there is no cluster 'nobody' in storage root '{root.uri}'. List them: periflow-ray cluster list\n",
    )


@pytest.mark.parametrize("command", [["ssh", "mine"], ["ssh", "mine", "--", "ray", "status"], ["tunnel", "mine"]])
def test_without_its_key_a_head_is_not_reached(run_cli: RunCli, root: StorageRoot, command: list[str]) -> None:
    write_cluster(root, RECORD)
    result = run_cli("cluster", *command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not have the key of cluster 'mine', which was made on 'kims-laptop'" in result.stderr


def test_a_command_for_the_head_keeps_its_own_options(
    run_cli: RunCli, root: StorageRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cluster(root, RECORD)
    secrets = find_secrets(root.uri, "mine")
    secrets.directory.mkdir(parents=True)
    secrets.key_path.touch()
    secrets.token_path.touch()
    replaced: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda program, argv: replaced.append(argv))
    assert run_cli("cluster", "ssh", "mine", "--", "tail", "-n", "3", "a file").exit_code == 0
    assert run_cli("cluster", "ssh", "mine").exit_code == 0
    with_command, shell = replaced
    assert with_command[-2] == "ubuntu@203.0.113.4"
    assert "tail -n 3" in with_command[-1]
    assert shell[-2:] == ["-t", "ubuntu@203.0.113.4"]


def test_the_log_of_a_making_is_read_here_and_filtered(run_cli: RunCli, root: StorageRoot) -> None:
    write_cluster(root, RECORD)
    result = run_cli("cluster", "logs", "mine", "--of", "up")
    assert result.exit_code == 1
    assert "is on the machine that made the cluster: kims-laptop" in result.stderr
    secrets = find_secrets(root.uri, "mine")
    secrets.directory.mkdir(parents=True)
    lines = [f"172.31.0.{number}: set up" for number in range(10)]
    (secrets.directory / "up.log").write_text("\n".join(lines))
    assert run_cli("cluster", "logs", "mine", "--of", "up", "-n", "2").stdout.splitlines() == lines[-2:]
    assert run_cli("cluster", "logs", "mine", "--of", "up", "--node", "172.31.0.5").stdout == "172.31.0.5: set up\n"
