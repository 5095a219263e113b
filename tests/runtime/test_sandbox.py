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
