"""A cluster comes up: what is written when, what is left alone, and what is refused.

The account is in memory, and ``ray up`` says what it is told to; the head is a real sshd on loopback.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.loopback_sshd import MISSING, SSH, SSHD, serve_ssh
from support.provider_stand_in import ProviderStandIn, make_machine
from support.ray_up import GOOD, RayUp

from periflow_ray.cluster import lifecycle
from periflow_ray.cluster import secrets as secrets_module
from periflow_ray.cluster.config.spec import ClusterSpec, build_spec
from periflow_ray.cluster.lifecycle import UpOptions, bring_up
from periflow_ray.cluster.providers.provider import Preparation, ProviderError
from periflow_ray.cluster.records import (
    ClusterAccount,
    ClusterRecord,
    cluster_key,
    read_account,
    read_cluster,
    write_account,
    write_cluster,
)
from periflow_ray.cluster.secrets import ClusterSecrets
from periflow_ray.cluster.wheels import WantedWheels
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.plan.catalogue import find_vm
from periflow_ray.store.root import StorageRoot

VM = "aws-16gb-t4-1g-us-east-1"
KEY_BITS = 2048


class Account(ProviderStandIn):
    """Its head is this machine; ``statuses`` are those of the record whenever something is prepared."""

    def __init__(self, root: StorageRoot) -> None:
        super().__init__()
        self._root = root
        self.statuses: list[str] = []

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        super().prepare(preparation, config)
        self.statuses.append(read_cluster(self._root, preparation.spec.name).status)
        config["auth"]["ssh_private_key"] = preparation.key_path
        if not self.machines["mine"]:
            self.machines["mine"] = [make_machine(public_address="127.0.0.1")]


@pytest.fixture(scope="module")
def _secrets(tmp_path_factory: pytest.TempPathFactory) -> ClusterSecrets:
    secrets = ClusterSecrets(tmp_path_factory.mktemp("clusters") / "mine-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets_module, "_KEY_BITS", KEY_BITS)
        secrets.make()
    return secrets


@pytest.fixture
def secrets(_secrets: ClusterSecrets, tmp_path: Path) -> ClusterSecrets:
    """Of this machine; the same key for all tests, which takes a while to make."""
    own = ClusterSecrets(tmp_path / "clusters" / "mine-1")
    own.directory.mkdir(parents=True, mode=0o700)
    for path in _secrets.directory.iterdir():
        (own.directory / path.name).write_bytes(path.read_bytes())
        (own.directory / path.name).chmod(0o600)
    return own


@pytest.fixture
def ray_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayUp:
    directory = tmp_path / "other-ray"
    monkeypatch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    ray_up = RayUp(directory)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".bash_profile").write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={directory}\n"
    )
    return ray_up


@pytest.fixture
def head(_secrets: ClusterSecrets, ray_up: RayUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if SSHD is None or SSH is None:
        pytest.skip(MISSING)
    directory = tmp_path / "sshd"
    directory.mkdir()
    with serve_ssh(directory, _secrets.read_public_key(), {"HOME": str(tmp_path / "home")}) as bin_dir:
        monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")
        yield


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


@pytest.fixture
def account(root: StorageRoot) -> Account:
    return Account(root)


SPEC = build_spec("mine", [find_vm(VM)], max_num_nodes=4)


@dataclasses.dataclass
class Maker:
    """Brings the cluster up with what a test gives, and keeps what was told."""

    root: StorageRoot
    account: Account
    secrets: ClusterSecrets
    wheels_dir: Path
    told: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, spec: ClusterSpec = SPEC, **given: Any) -> ClusterRecord:
        options = UpOptions("203.0.113.7/32", self.wheels_dir, None, "kim")
        return bring_up(
            self.root, spec, self.account, self.secrets, dataclasses.replace(options, **given), self.told.append
        )


@pytest.fixture
def up(root: StorageRoot, account: Account, secrets: ClusterSecrets, tmp_path: Path) -> Maker:
    return Maker(root, account, secrets, tmp_path / "wheels")


def test_a_cluster_is_up_once_a_task_has_run_on_its_head(
    up: Maker, root: StorageRoot, account: Account, secrets: ClusterSecrets, ray_up: RayUp, head: None
) -> None:
    ray_up.answer(GOOD, 0)
    record = up(autostop_s=1800.0, max_cost_usd=25.0)
    assert record == read_cluster(root, "mine")
    assert (record.status, record.head_address, record.created_by) == ("running", "127.0.0.1", "kim")
    assert (record.max_num_nodes, record.autostop_s, record.max_cost_usd) == (4, 1800.0, 25.0)
    # Before the first thing that costs anything, so that any machine can end it.
    assert account.statuses == ["creating"]
    assert up.told[0] == "launching the head"
    assert up.told[-1] == "running a first task on the head"
    stored = root.read_bytes(cluster_key("mine", "cluster.yaml")).decode()
    assert yaml.safe_load(stored)["cluster_name"] == "mine"
    assert secrets.token_path.read_text() not in stored
    mounts = yaml.safe_load(stored)["file_mounts"]
    assert json.loads(Path(mounts["~/periflow-ray/about.json"]).read_text())["storage"] == root.uri


def test_a_cluster_that_is_up_stays_as_it_is_but_for_who_may_come_in_and_when_it_ends(
    up: Maker, root: StorageRoot, account: Account, ray_up: RayUp, head: None
) -> None:
    ray_up.answer(GOOD, 0)
    before = up(autostop_s=1800.0)
    write_account(root, "mine", ClusterAccount(1.0))
    # As whoever comes back from elsewhere gives it: by its name, and all else by default.
    again = up(build_spec("mine", SPEC.vms), ssh_from="198.51.100.0/24", autostop_s=3600.0)
    assert len(ray_up.calls) == 1
    assert [each.ssh_from for each in account.preparations] == ["203.0.113.7/32", "198.51.100.0/24"]
    assert again == dataclasses.replace(before, autostop_s=3600.0)
    assert account.statuses == ["creating", "running"]
    assert read_account(root, "mine") == ClusterAccount(1.0)


def test_a_cluster_that_is_up_keeps_the_packages_that_it_was_made_with(
    up: Maker, root: StorageRoot, ray_up: RayUp, head: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[WantedWheels] = []
    monkeypatch.setattr(lifecycle, "collect_wheels", lambda directory, wanted, tell: collected.append(wanted))
    ray_up.answer(GOOD, 0)
    wanted = WantedWheels(packages=("einops", "timm>=1"))
    up(wanted_wheels=wanted)
    for again in (WantedWheels(), WantedWheels(packages=("timm>=1", "einops"))):
        assert up(wanted_wheels=again).packages == ["einops", "timm>=1"]
    with pytest.raises(UsageError, match=r"cluster 'mine' runs, .* \(--pip einops, timm>=1\)"):
        up(wanted_wheels=WantedWheels(packages=("peft",)))
    assert collected == [wanted]
    assert read_cluster(root, "mine").packages == ["einops", "timm>=1"]


def test_a_making_that_was_cut_off_goes_on(up: Maker, root: StorageRoot, ray_up: RayUp, head: None) -> None:
    ray_up.answer("An error occurred (VcpuLimitExceeded) when calling the RunInstances operation: no more\n", 1)
    ray_up.answer(GOOD, 0)
    with pytest.raises(ProviderError, match="VcpuLimitExceeded"):
        up()
    first = read_cluster(root, "mine")
    assert first.status == "creating"
    assert up().status == "running"
    assert read_cluster(root, "mine").created_unix_s == first.created_unix_s


def test_a_head_that_cannot_run_a_task_is_not_called_up(
    up: Maker, root: StorageRoot, ray_up: RayUp, tmp_path: Path, head: None
) -> None:
    ray_up.answer(GOOD, 0)
    (tmp_path / "home" / ".bash_profile").write_text("export PATH=/nowhere\n")
    with pytest.raises(ClusterError, match=r"the head of cluster 'mine' at 127.0.0.1 failed at 'python ...'"):
        up()
    assert read_cluster(root, "mine").status == "creating"


def test_a_new_cluster_of_an_old_name_has_nothing_of_the_old_one(
    up: Maker, root: StorageRoot, ray_up: RayUp, head: None
) -> None:
    old = ClusterRecord("mine", "aws", "us-west-2", ["x"], 2, 10, "ada", "there", 1.0, "ended", max_cost_usd=1.0)
    write_cluster(root, old)
    write_account(root, "mine", ClusterAccount(1.0, ended_because="it has cost $1.00, and --max-cost is $1.00"))
    ray_up.answer(GOOD, 0)
    record = up()
    assert (record.vm_names, record.max_cost_usd, record.created_unix_s > 1.0) == ([VM], None, True)
    assert read_account(root, "mine") is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vm_names": ["aws-24gb-a10g-1g-us-east-1"]}, "with other VM types (aws-24gb-a10g-1g-us-east-1)"),
        ({"vm_names": [VM, f"{VM}-spot"]}, f"with other VM types ({VM}, {VM}-spot)"),
        ({"region": "us-west-2"}, "there is a cluster 'mine'"),
    ],
)
def test_another_cluster_of_that_name_is_not_touched(
    up: Maker, root: StorageRoot, account: Account, changed: dict[str, Any], words: str
) -> None:
    theirs = ClusterRecord("mine", "aws", "us-east-1", [VM], 2, 10, "kim", "laptop", 1.0, "running", "203.0.113.4")
    theirs = dataclasses.replace(theirs, **changed)
    write_cluster(root, theirs)
    account.machines["mine"] = [make_machine()]
    with pytest.raises(UsageError) as caught:
        up()
    assert words in str(caught.value)
    assert "periflow-ray cluster down mine" in str(caught.value)
    assert read_cluster(root, "mine") == theirs
    assert account.preparations == []


@pytest.mark.parametrize("is_known", [True, False])
def test_machines_whose_key_is_on_another_machine_are_not_touched(
    up: Maker, root: StorageRoot, account: Account, secrets: ClusterSecrets, is_known: bool
) -> None:
    secrets.key_path.unlink()
    account.machines["mine"] = [make_machine()]
    if is_known:
        write_cluster(
            root, ClusterRecord("mine", "aws", "us-east-1", [VM], 2, 10, "kim", "kims-laptop", 1.0, "running")
        )
    with pytest.raises(UsageError, match="its key is on " + ("'kims-laptop'" if is_known else "another machine")):
        up()
    assert not secrets.key_path.exists()
    assert account.preparations == []
