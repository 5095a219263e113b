"""Cuts what a program prints into lines, as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from periflow_ray.secret_mask import SecretMask

# A program that never prints a newline must not fill the memory.
MAX_LINE_CHARS = 64 << 10
# When a progress bar is shown first, and how often from then on while its line goes on; an hour of it is 360 lines.
FIRST_BAR_S = 3.0
BAR_INTERVAL_S = 10.0


class OutputLines:
    """Hands over each line that has ended, without its line end; ``finish`` the last one.

    A line longer than 64 Ki characters comes in pieces. A progress bar rewrites its line with carriage returns: handed
    over is what was visible last, and after 3 s, then every 10 s, what is visible then.

    Args:
        mask: whose secrets no piece is cut through; whole lines are handed over as they are.
        clock: seconds that go forward.
    """

    def __init__(
        self,
        on_line: Callable[[str], None],
        mask: SecretMask | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_line = on_line
        self._mask = mask or SecretMask()
        self._clock = clock
        # What is visible of the line that has not ended.
        self._rest = ""
        self._bar_due_s: float | None = None
        self._bar_shown: str | None = None

    def feed(self, text: str) -> None:
        """Take what was printed next."""
        *lines, rest = (self._rest + text).split("\n")
        # Kept at once: whoever takes a line may raise.
        self._rest = ""
        for line in lines:
            self._end(line)
        *overwritten, self._rest = _split_rewritten(rest)
        if overwritten:
            self._show_bar(overwritten[-1])
        while len(self._rest) > MAX_LINE_CHARS + self._mask.longest:
            piece, self._rest = self._mask.cut(self._rest, MAX_LINE_CHARS)
            self._on_line(piece)

    def finish(self) -> None:
        """Hand over a last line without a line end."""
        rest, self._rest = self._rest, ""
        if rest:
            self._end(rest)

    def _end(self, line: str) -> None:
        visible = _split_rewritten(line)[-1].rstrip("\r")
        shown, self._bar_shown, self._bar_due_s = self._bar_shown, None, None
        if visible == shown:
            return
        while len(visible) > MAX_LINE_CHARS:
            piece, visible = self._mask.cut(visible, MAX_LINE_CHARS)
            self._on_line(piece)
        self._on_line(visible)

    def _show_bar(self, visible: str) -> None:
        now_s = self._clock()
        if self._bar_due_s is None:
            self._bar_due_s = now_s + FIRST_BAR_S
        elif now_s >= self._bar_due_s and visible != self._bar_shown:
            self._bar_due_s, self._bar_shown = now_s + BAR_INTERVAL_S, visible
            self._on_line(visible)


def _split_rewritten(line: str) -> list[str]:
    """What a line showed one after the other; a carriage return at its end has rewritten nothing yet."""
    end = len(line.rstrip("\r"))
    *overwritten, visible = line[:end].split("\r")
    return [*filter(None, overwritten), visible + line[end:]]
