"""``upload_checkpoint`` in one member, with a real monitor: when it returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulated_nodes import FailingTransfer, facts_of
from simulated_ranks import Pace, TrainingShell

from periflow_ray.runtime.member.reporter import Reporter
from periflow_ray.runtime.member.saving import Saving
from periflow_ray.runtime.member.shell import Records
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer

WAIT_S = 30.0


@pytest.fixture
def monitor(root: StorageRoot) -> Iterator[InProcessMonitor]:
    with InProcessMonitor(lambda: Monitor(root, 1, JobRules(1, -1, Retention()))) as monitor:
        yield monitor


@pytest.fixture
def open_saving(root: StorageRoot, tmp_path: Path, monitor: InProcessMonitor) -> Iterator[Callable[..., Saving]]:
    """The saves of the only member; its uploads may be given."""
    opened: list[tuple[Reporter, CheckpointUploads]] = []

    def start(transfer: Transfer | None = None) -> Saving:
        attempt = monitor.join(("group-1", 0), facts_of(0, 1)).attempt
        shell = TrainingShell(tmp_path, 0, lambda rank: None, Pace())
        assert shell.output_dir is not None
        shell.output_dir.mkdir()
        (shell.output_dir / "model.pt").write_bytes(b"weights")
        reporter = Reporter(monitor, attempt, 0, 3600.0, lambda: Records({}))
        snapshots_dir, transfer = tmp_path / "snapshots", transfer or Transfer(root)
        uploads = CheckpointUploads(root, 1, 0, monitor, attempt, snapshots_dir, transfer)
        opened.append((reporter.__enter__(), uploads.__enter__()))
        return Saving(monitor, attempt, 0, shell, uploads, reporter)

    yield start
    for reporter, uploads in opened:
        uploads.finish()
        reporter.__exit__(None, None, None)


class Save:
    """A rank in a thread that saves at a step."""

    def __init__(self, saving: Saving, step: int) -> None:
        self.has_returned = threading.Event()

        def save() -> None:
            saving.save(step, False)
            self.has_returned.set()

        threading.Thread(target=save, daemon=True).start()


@pytest.mark.parametrize(
    ("announced", "steps"),
    [([], [5, 5]), ([5], [1, 4]), ([5, NO_STEP], [4, 5, 100]), ([SAVE_NOW, NO_STEP], [1, 100])],
)
def test_a_save_that_was_not_announced_returns_when_the_files_are_copied(open_saving, announced, steps):
    saving = open_saving()
    for step in announced:
        saving.announce(step)
    for step in steps:
        assert Save(saving, step).has_returned.wait(WAIT_S)


@pytest.mark.parametrize(("announced", "step"), [(5, 5), (5, 6), (SAVE_NOW, 1)])
def test_the_announced_save_lasts_until_the_users_code_has_ended(open_saving, monitor, wait_until, announced, step):
    saving = open_saving()
    saving.announce(announced)
    save = Save(saving, step)
    wait_until(lambda: monitor.has_committed((step, 1)))
    assert not save.has_returned.is_set()
    saving.end()
    assert saving.is_ending
    assert not save.has_returned.is_set()
    saving.release()
    assert save.has_returned.wait(WAIT_S)


def test_an_announced_save_that_is_not_committed_does_not_hold_the_training(open_saving, root):
    saving = open_saving(FailingTransfer(root, OSError(28, "No space left on device")))
    saving.announce(5)
    assert Save(saving, 5).has_returned.wait(WAIT_S)


@pytest.mark.parametrize("later", [21, SAVE_NOW, NO_STEP])
def test_a_committed_save_is_not_the_last_one_if_another_is_announced(open_saving, monitor, wait_until, later):
    """As where this rank's periodic checkpoint came just after the announcement, and others saved at another step."""
    saving = open_saving()
    saving.announce(SAVE_NOW)
    save = Save(saving, 10)
    wait_until(lambda: monitor.has_committed((10, 1)))
    assert not save.has_returned.is_set()
    saving.announce(later)
    assert save.has_returned.wait(WAIT_S)


def test_without_an_output_directory_nothing_is_saved(open_saving, monitor, tmp_path):
    saving = open_saving()
    saving._shell.output_dir = None
    saving.save(5, False)
    assert monitor.newest_commit() is None
