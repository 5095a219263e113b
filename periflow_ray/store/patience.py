"""What a job's start needs of its storage is tried again while the storage is away: a start must not fail for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from periflow_ray.errors import CorruptCheckpointError, DocumentError, StorageError

# A storage root that is away for longer is not expected back: what needs it fails.
STORAGE_PATIENCE_S = 600.0
RETRY_INTERVAL_S = 1.0

_Result = TypeVar("_Result")


class Patience:
    """Tries storage operations again until they succeed, time is up or nobody wants them any more.

    Args:
        tell: gets one sentence for the user for each wait.
        timeout_s: how long the storage may be away.
        is_cancelled: asked before each further try.
        look: asks the storage something, and raises where it is away. With it, an action may fail for other reasons;
            without it each failure counts as the storage's.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        timeout_s: float = STORAGE_PATIENCE_S,
        is_cancelled: Callable[[], bool] = lambda: False,
        look: Callable[[], object] | None = None,
    ) -> None:
        self._tell = tell
        self._timeout_s = timeout_s
        self._is_cancelled = is_cancelled
        self._look = look

    def is_away(self) -> bool:
        """Whether the storage is, after something has failed."""
        try:
            if self._look is not None:
                self._look()
                return False
        except (OSError, StorageError):
            pass
        return True

    def insist(self, action: Callable[[], _Result]) -> _Result:
        """The action's result; it is begun again as a whole.

        Raises:
            OSError, StorageError: the last try's, when there is no other one.
            CorruptCheckpointError, DocumentError: at once, because the storage has answered.
        """
        deadline_s = time.monotonic() + self._timeout_s
        has_told = was_there = False
        while True:
            try:
                return action()
            except (CorruptCheckpointError, DocumentError):
                raise
            except (OSError, StorageError) as err:
                if time.monotonic() >= deadline_s or self._is_cancelled():
                    raise
                if not self.is_away():
                    # It may have come back since, so once more; but what fails then has another reason.
                    if was_there:
                        raise
                    was_there = True
                    continue
                was_there = False
                if not has_told:
                    self._tell(f"waits for the storage, for up to {self._timeout_s:.0f} s: {err}")
                    has_told = True
            time.sleep(RETRY_INTERVAL_S)
