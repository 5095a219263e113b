from __future__ import annotations

from pathlib import Path

import pytest

from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.sandbox import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(sandbox_module, "_base_dir", lambda: tmp_path)
    return Sandbox("/storage", 1, 0)


def test_what_a_job_has_stays_for_its_next_attempt(sandbox: Sandbox) -> None:
    sandbox.create("one")
    output = sandbox.path_of("/workspace/ckpt/state")
    output.parent.mkdir(parents=True)
    output.touch()
    (sandbox.snapshots_dir / "unfinished").touch()
    sandbox.create("one")
    assert output.exists()
    assert list(sandbox.snapshots_dir.iterdir()) == []


@pytest.mark.parametrize("before", ["another", None])
def test_nothing_of_another_job_with_the_same_number_is_left(sandbox: Sandbox, before: str | None) -> None:
    if before is not None:
        sandbox.create(before)
    output = sandbox.path_of("/workspace/main.py")
    output.parent.mkdir(parents=True)
    output.touch()
    sandbox.create("one")
    assert not output.exists()


def test_an_abandoned_sandbox_is_not_used_again_but_removed_with_the_job(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.create("one")
    sandbox.abandon()
    second = Sandbox("/storage", 1, 0)
    assert (sandbox.directory.name, second.directory.name) == ("node-0", "node-0.1")
    assert second.marker != sandbox.marker
    second.create("one")
    assert Sandbox("/storage", 1, 0).directory == second.directory
    second.abandon()
    third = Sandbox("/storage", 1, 0)
    third.create("one")
    assert third.directory.name == "node-0.2"
    neighbour = Sandbox("/storage", 1, 1)
    neighbour.create("one")
    Sandbox("/storage", 1, 0).remove()
    assert [path.name for path in neighbour.job_dir.iterdir()] == ["node-1"]
    neighbour.remove()
    assert not neighbour.job_dir.exists()
