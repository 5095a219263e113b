"""Line plots in a terminal, drawn with braille characters: 2 x 4 dots a character."""

from __future__ import annotations

from collections.abc import Sequence

_DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE_BLANK = 0x2800


def draw_plot(
    title: str, lines: Sequence[Sequence[tuple[int, float]]], *, num_columns: int = 60, num_rows: int = 12
) -> str:
    """Draw lines through (step, value) points over common axes.

    Args:
        num_columns: characters of the drawing, without the labels of the axis.
        num_rows: lines of the drawing, without title and step axis.
    Returns:
        Text of num_rows + 3 lines, or a sentence when there is nothing to draw.
    """
    points = [point for line in lines for point in line]
    if not points:
        return f"{title}: no finite numbers to draw."
    first_step, last_step = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    dots = _Dots(num_columns, num_rows)
    for line in lines:
        places = [
            (
                _scale(step, first_step, last_step, 2 * num_columns - 1),
                _scale(value, high, low, 4 * num_rows - 1),
            )
            for step, value in line
        ]
        for start, end in zip(places, places[1:] or places, strict=False):
            dots.connect(start, end)
    # All points on one level stand in the middle.
    labels = {0: f"{high:.4g}", num_rows - 1: f"{low:.4g}"} if high > low else {(num_rows - 1) // 2: f"{high:.4g}"}
    label_width = max(len(label) for label in labels.values())
    rows = [f"{labels.get(index, ''):>{label_width}} ┤{row}" for index, row in enumerate(dots.rows())]
    steps = str(last_step).rjust(num_columns - len(str(first_step)))
    return "\n".join(
        [title, *rows, f"{'':{label_width}} └{'─' * num_columns}", f"{'':{label_width}}  {first_step}{steps}"]
    )


class _Dots:
    """A grid of dots, x to the right and y downwards."""

    def __init__(self, num_columns: int, num_rows: int) -> None:
        self._cells = [[0] * num_columns for _ in range(num_rows)]

    def connect(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Set the dots of a straight line, both ends included."""
        num_moves = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for move in range(num_moves + 1):
            x = round(start[0] + (end[0] - start[0]) * move / num_moves)
            y = round(start[1] + (end[1] - start[1]) * move / num_moves)
            self._cells[y // 4][x // 2] |= _DOT_BITS[y % 4][x % 2]

    def rows(self) -> list[str]:
        """The grid as text, without trailing blanks."""
        return ["".join(chr(_BRAILLE_BLANK + cell) if cell else " " for cell in row).rstrip() for row in self._cells]


def _scale(value: float, first: float, last: float, num_places: int) -> int:
    # Halved, because the difference of two huge numbers is infinite.
    span = last / 2 - first / 2
    return round((value / 2 - first / 2) / span * num_places) if span else num_places // 2
