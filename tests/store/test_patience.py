"""What a job's start needs of a storage that is away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from periflow_ray.errors import CorruptCheckpointError, DamagedDocumentError, NotFoundError, StorageError
from periflow_ray.store import patience as patience_module
from periflow_ray.store.patience import Patience


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "RETRY_INTERVAL_S", 0.001)


def failing(*errors: Exception) -> Callable[[], str]:
    """An action that raises these, one after the other, and then succeeds."""
    left = list(errors)

    def act() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return act


def test_what_the_storage_refuses_is_tried_again_and_told_once() -> None:
    told: list[str] = []
    errors = (OSError(30, "Read-only file system"), StorageError("no answer"), OSError("later"))
    assert Patience(told.append).insist(failing(*errors)) == "done"
    assert told == ["waits for the storage, for up to 600 s: [Errno 30] Read-only file system"]


def test_a_storage_that_stays_away_is_not_waited_for_without_end() -> None:
    with pytest.raises(StorageError, match="second"):
        Patience(print, timeout_s=0.0005).insist(failing(StorageError("first"), StorageError("second")))
    with pytest.raises(StorageError, match="first"):
        Patience(print, timeout_s=0.0).insist(failing(StorageError("first")))


def test_nobody_waits_for_what_is_not_wanted_any_more() -> None:
    with pytest.raises(StorageError, match="away"):
        Patience(print, is_cancelled=lambda: True).insist(failing(StorageError("away")))


@pytest.mark.parametrize("error", [CorruptCheckpointError("c"), DamagedDocumentError("d"), NotFoundError("n")])
def test_what_the_storage_says_is_no_reason_to_ask_again(error: Exception) -> None:
    with pytest.raises(type(error)):
        Patience(print).insist(failing(error))


def test_what_fails_while_the_storage_is_there_is_tried_once_more_only() -> None:
    patience = Patience(print, look=lambda: None)
    assert patience.insist(failing(OSError("disk full"))) == "done"
    with pytest.raises(OSError, match="still full"):
        patience.insist(failing(OSError("disk full"), OSError("still full"), OSError("unseen")))


def test_a_storage_that_comes_and_goes_is_waited_for() -> None:
    looks = [StorageError("away"), None, StorageError("away"), None]

    def look() -> None:
        found = looks.pop(0)
        if found is not None:
            raise found

    patience = Patience(print, look=look)
    assert patience.insist(failing(*[StorageError("cut")] * 4)) == "done"
    assert looks == []
