"""What a program prints becomes lines: whole ones, pieces of very long ones, and progress bars while they go on."""

from __future__ import annotations

from periflow_ray.processes.output_lines import MAX_LINE_CHARS, OutputLines
from periflow_ray.secret_mask import SecretMask


def cut(*pieces: str, secrets: tuple[str, ...] = ()) -> list[str]:
    """The lines of what is printed in pieces, masked as a log does it."""
    found: list[str] = []
    mask = SecretMask(secrets)
    lines = OutputLines(lambda line: found.append(mask.apply(line)), mask, clock=lambda: 0.0)
    for piece in pieces:
        lines.feed(piece)
    lines.finish()
    return found


def test_lines_end_with_a_newline_or_the_output():
    assert cut("one\ntw", "o\n\n", "three") == ["one", "two", "", "three"]
    assert cut("dos\r\nline\r", "\n") == ["dos", "line"]
    assert cut("") == []


def test_a_long_line_comes_in_pieces_whether_it_comes_at_once_or_bit_by_bit():
    text = "".join(f"{number:09}," for number in range(20_000))
    for pieces in ([text], [text[i : i + 1000] for i in range(0, len(text), 1000)], [text + "\n"]):
        found = cut(*pieces)
        assert "".join(found) == text
        assert max(map(len, found)) == MAX_LINE_CHARS


def test_a_secret_at_the_cut_of_a_long_line_is_hidden_however_the_output_comes():
    secret = "correct-horse-battery-staple"
    for at in range(MAX_LINE_CHARS - len(secret) - 1, MAX_LINE_CHARS + 2):
        text = "x" * at + secret + "y" * 200
        for size in (len(text), 1000):
            found = cut(*(text[i : i + size] for i in range(0, len(text), size)), secrets=(secret, secret[:7]))
            assert "".join(found) == "x" * at + "***" + "y" * 200


class Bar:
    """A progress bar that is redrawn every second."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.lines: list[str] = []
        self.output = OutputLines(self.lines.append, clock=lambda: self.now_s)

    def draw(self, num_times: int) -> None:
        for _ in range(num_times):
            self.output.feed(f"\r{self.now_s:.0f} s")
            self.now_s += 1


def test_a_progress_bar_is_shown_while_it_goes_on():
    bar = Bar()
    bar.draw(31)
    assert bar.lines == ["3 s", "13 s", "23 s"]
    bar.output.feed("\ndone\n")
    assert bar.lines == ["3 s", "13 s", "23 s", "30 s", "done"]


def test_a_short_progress_bar_leaves_what_was_visible_last():
    bar = Bar()
    bar.draw(3)
    bar.output.feed("\n")
    assert bar.lines == ["2 s"]


def test_nothing_is_kept_of_what_a_progress_bar_has_overwritten():
    bar = Bar()
    bar.draw(100_000)
    assert len(bar.output._rest) < 20
