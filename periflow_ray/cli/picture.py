"""Metrics as a picture: PNG through matplotlib, or one self-contained HTML page with inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from periflow_ray.cli.series import Series, thin_numbers
from periflow_ray.errors import PeriflowRayError, UsageError

PICTURE_SUFFIXES = (".png", ".html")

_MAX_NUM_POINTS = 4000
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 860, 300, 80, 44, 10
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:60em;color:#222}h2{font-size:1em;margin:2em 0 .3em}"
    "svg{width:100%;background:#fafafa}text{font-size:12px;fill:#555}.axis{stroke:#888;fill:none}"
    ".grid{stroke:#e4e4e4}p{margin:.3em 0;font-size:13px}"
)


def check_picture_path(path: Path) -> None:
    """Refuse a file whose kind cannot be written.

    Raises:
        UsageError: the name ends neither in .png nor in .html.
        PeriflowRayError: PNG, but matplotlib is not installed.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(f"--plot {path}: the name must end in .png or .html.")
    if path.suffix.lower() == ".png":
        _import_figure_for_png()


def write_picture(path: Path, title: str, series: Sequence[Series]) -> None:
    """Draw one diagram per metric, one line per rank; call ``check_picture_path`` first."""
    names = list(dict.fromkeys(entry.name for entry in series))
    diagrams = [(name, [entry for entry in series if entry.name == name]) for name in names]
    if path.suffix.lower() == ".png":
        _write_png(path, title, diagrams)
    else:
        path.write_text(_build_page(title, diagrams), encoding="utf-8")


def _write_png(path: Path, title: str, diagrams: Sequence[tuple[str, Sequence[Series]]]) -> None:
    # The Figure class alone: pyplot would look for a display.
    figure = _import_figure_for_png()(figsize=(9, 0.6 + 2.8 * len(diagrams)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for index, (name, entries) in enumerate(diagrams):
        axes = figure.add_subplot(len(diagrams), 1, index + 1)
        for entry in entries:
            numbers = entry.numbers()
            axes.plot(
                [step for step, _ in numbers],
                [value for _, value in numbers],
                label=f"rank {entry.rank}",
                marker="." if len(numbers) == 1 else None,
            )
        axes.set_ylabel(name, parse_math=False)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(entries) > 1:
            axes.legend()
    figure.savefig(path, dpi=120, format="png")


def import_figure(needs_it: str = "a .png needs matplotlib", otherwise: str = "") -> type:
    """Matplotlib's ``Figure``.

    Args:
        needs_it, otherwise: what the error says of the picture, and of what goes without.
    Raises:
        PeriflowRayError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as err:
        raise PeriflowRayError(
            f"{needs_it}, which is not installed: pip install 'periflow-ray[plot]'.{otherwise}"
        ) from err
    figure_class: type = Figure
    return figure_class


def _import_figure_for_png() -> type:
    return import_figure(otherwise=" A .html picture needs nothing: --plot metrics.html")


def _build_page(title: str, diagrams: Sequence[tuple[str, Sequence[Series]]]) -> str:
    parts = [f"<h2>{escape(name)}</h2>\n{_build_svg(entries)}" for name, entries in diagrams]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _build_svg(entries: Sequence[Series]) -> str:
    lines = [(entry.rank, entry.numbers()) for entry in entries]
    points = [point for _, numbers in lines for point in numbers]
    if not points:
        return "<p>No finite numbers to draw.</p>"
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    plot_height = _HEIGHT - _BOTTOM - _TOP

    def place(step: int, value: float) -> tuple[float, float]:
        x = (step - first) / (last - first) if last > first else 0.5
        y = (high / 2 - value / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
        return _LEFT + x * (_WIDTH - _LEFT - 10), _TOP + y * plot_height

    svg = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for value in find_ticks(low, high):
        _, y = place(first, value)
        svg.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - 10}"/>')
        svg.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for step in dict.fromkeys(map(round, find_ticks(first, last))):
        x, _ = place(step, high)
        svg.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_TOP + plot_height}"/>')
        svg.append(f'<text x="{x:.1f}" y="{_TOP + plot_height + 16}" text-anchor="middle">{step}</text>')
    svg.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_TOP + plot_height}H{_WIDTH - 10}"/>')
    svg.append(f'<text x="{_LEFT + (_WIDTH - _LEFT) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>')
    for index, (_, numbers) in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        places = [place(step, value) for step, value in thin_numbers(numbers, _MAX_NUM_POINTS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        svg.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>')
        svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places if len(places) == 1]
    # Beside the curves, where it hides none of them.
    names = [
        f'<span style="color:{_COLOURS[index % len(_COLOURS)]}">rank {rank}</span>'
        for index, (rank, _) in enumerate(lines)
    ]
    legend = [f"<p>{' '.join(names)}</p>"] if len(lines) > 1 else []
    return "\n".join([*legend, *svg, "</svg>"])


def find_ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, about five; one alone where both are the same."""
    span = high / 2 - low / 2
    # Numbers that differ less would all look the same.
    if span <= 1e-6 * max(abs(low), abs(high)):
        return [low]
    size = 10.0 ** math.floor(math.log10(span / 2.5))
    size = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= span / 2.5)
    return [number * size for number in range(math.ceil(low / size), math.floor(high / size) + 1)]
