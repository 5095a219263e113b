"""Each single call of a local file system fails or stalls once while a checkpoint is saved, at every position in turn.

As on servers: afterwards the checkpoint is committed and every byte comes back, or it is not visible.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.local_faults import LOCAL_FAULTS, LocalFault, LocalFaults
from support.saving import Saver

from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

FIRST, DISTURBED, NEXT = 1, 2, 3
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(params=["linked", "copied"])
def saver(request, tmp_path) -> Saver:
    """A job with one committed checkpoint; its snapshots can be linked into the storage root, or have to be copied."""
    if request.param == "copied" and not SHARED_MEMORY.is_dir():
        pytest.skip(f"{SHARED_MEMORY}, a second file system, is not there")
    scratch_dir = tmp_path if request.param == "linked" else SHARED_MEMORY
    saver = Saver(
        StorageRoot(str(tmp_path / "storage")), job_id=1, model_bytes=1000, part_bytes=100, scratch_dir=scratch_dir
    )
    assert saver.save(FIRST) is None
    return saver


@pytest.mark.parametrize("fault", LOCAL_FAULTS)
def test_whatever_call_fails_once_the_checkpoint_is_whole_or_not_visible(saver, monkeypatch, fault: LocalFault):
    monkeypatch.setattr("periflow_ray.store.operations._FIRST_PAUSE_S", 0.001)
    root = saver.root
    faults = LocalFaults(Path(root.base_path))
    with faults.in_force():
        assert saver.save(DISTURBED) is None
    num_calls = len(faults.calls)
    checkpoints.destroy(root, 1, "step-00000002")
    for position in range(1, num_calls + 1):
        faults.plan(fault, position)
        with faults.in_force():
            reason = saver.save(DISTURBED)
        place = f"{fault} at {position}: {faults.calls[position - 1 : position + 10]}"
        assert faults.has_struck, place
        visible = saver.list_visible_steps(root)
        assert visible in ([FIRST], [FIRST, DISTURBED]), place
        assert reason is not None or DISTURBED in visible, place
        assert all(saver.comes_back(root, step) for step in visible), place
        checkpoints.destroy(root, 1, "step-00000002")
    assert saver.save(NEXT) is None
    assert saver.list_visible_steps(root) == [FIRST, NEXT]
    assert saver.comes_back(root, NEXT)
