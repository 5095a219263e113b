"""Pictures of a sweep, through matplotlib: one PNG, or all of them in one self-contained HTML page."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periflow_ray.cli.picture import import_figure
from periflow_ray.sweeps.importance import rank_parameters
from periflow_ray.sweeps.journal import Trial, rank_trials

if TYPE_CHECKING:
    from periflow_ray.jobs.attempts import AttemptRecord
    from periflow_ray.spec import SweepSpec

_COLOURS = {"success": "#2ca02c", "early": "#ff7f0e", "failed": "#d62728", "stopped": "#7f7f7f", "running": "#1f77b4"}
# The best of very many; more lines are a smear.
_MAX_LINES = 200
_STYLE = "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:65em;color:#222}svg{width:100%;height:auto}"


@dataclass(frozen=True)
class SweepPicture:
    """What there is to draw.

    Args:
        attempts: of the trials' jobs, by the trials' numbers.
    """

    title: str
    spec: SweepSpec
    trials: Sequence[Trial]
    attempts: Mapping[int, Sequence[AttemptRecord]]

    @property
    def varying(self) -> list[str]:
        """Parameters that are not the same in all trials."""
        names = self.spec.parameters
        return [name for name in names if len({repr(trial.parameters.get(name)) for trial in self.trials}) > 1]

    @property
    def judged(self) -> list[tuple[Trial, float]]:
        """Trials with their best values, the best first."""
        ranked = rank_trials(self.trials, self.spec.mode)
        return [(trial, value) for trial in ranked if (value := trial.best(self.spec.mode)) is not None]


def write_png(path: Path, kind: str, picture: SweepPicture) -> None:
    """Draw one kind of picture.

    Raises:
        PeriflowRayError: matplotlib is not installed.
    """
    _draw(kind, picture).savefig(path, format="png", dpi=120)


def write_page(path: Path, kinds: Sequence[str], picture: SweepPicture) -> None:
    """Draw several kinds into one HTML page that needs no other file.

    Raises:
        PeriflowRayError: matplotlib is not installed.
    """
    parts = []
    for kind in kinds:
        text = io.StringIO()
        _draw(kind, picture).savefig(text, format="svg")
        svg = text.getvalue()
        parts.append(f"<h2>{escape(kind)}</h2>\n{svg[svg.index('<svg') :]}")
    head = f"<meta charset='utf-8'><title>{escape(picture.title)}</title><style>{_STYLE}</style>"
    body = "\n".join([f"<h1>{escape(picture.title)}</h1>", *parts])
    path.write_text(f"<!doctype html>\n{head}\n{body}\n", encoding="utf-8")


def _draw(kind: str, picture: SweepPicture) -> Any:
    # The Figure class alone: pyplot would look for a display.
    figure = import_figure("pictures of sweeps need matplotlib")(figsize=(9, 4.5), layout="constrained")
    figure.suptitle(f"{picture.title}: {kind}", parse_math=False)
    KINDS[kind](figure, picture)
    return figure


def _draw_history(figure: Any, picture: SweepPicture) -> None:
    axes = figure.add_subplot()
    better = max if picture.spec.mode == "max" else min
    best: list[tuple[int, float]] = []
    for trial in sorted(picture.trials, key=lambda trial: trial.number):
        value = trial.best(picture.spec.mode)
        if value is None:
            continue
        axes.scatter([trial.number], [value], color=_COLOURS[trial.status])
        best.append((trial.number, value if not best else better(best[-1][1], value)))
    axes.step([number for number, _ in best], [value for _, value in best], where="post", color="#222", label="best")
    _name_colours(axes, picture)
    _label(axes, "trial", f"best {picture.spec.metric}")


def _draw_curves(figure: Any, picture: SweepPicture) -> None:
    axes = figure.add_subplot()
    for rank, (trial, _) in enumerate(picture.judged[:_MAX_LINES]):
        dim = 0.25 if trial.status in ("early", "failed", "stopped") else 0.9
        steps, values = [step for step, _ in trial.reports], [value for _, value in trial.reports]
        label = f"trial {trial.number}" if rank < 5 else None
        axes.plot(steps, values, alpha=dim, label=label, marker="." if len(steps) == 1 else None)
    _label(axes, "step", picture.spec.metric)


def _draw_slices(figure: Any, picture: SweepPicture) -> None:
    names = picture.varying
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        used = [(trial, value) for trial, value in picture.judged if name in trial.parameters]
        _scatter(axes, picture.spec, name, used)
        axes.set_xlabel(name, parse_math=False)
        if index == 0:
            axes.set_ylabel(f"best {picture.spec.metric}", parse_math=False)


def _scatter(axes: Any, spec: SweepSpec, name: str, used: Sequence[tuple[Trial, float]]) -> None:
    given = [trial.parameters[name] for trial, _ in used]
    if not all(_is_number(value) for value in given):
        given = [str(value) for value in given]
    elif spec.parameters[name].kind.startswith("log"):
        axes.set_xscale("log")
    axes.scatter(given, [value for _, value in used], c=[_COLOURS[trial.status] for trial, _ in used])


def _draw_parallel(figure: Any, picture: SweepPicture) -> None:
    names, axes = picture.varying, figure.add_subplot()
    judged = picture.judged[:_MAX_LINES]
    columns = [_scale(picture.spec, name, [trial.parameters.get(name) for trial, _ in judged]) for name in names]
    columns.append(_spread([value for _, value in judged]))
    # The worst first, so that the best are on top.
    for index in reversed(range(len(judged))):
        shade = 1 - index / max(1, len(judged) - 1)
        axes.plot(
            range(len(columns)), [column[index] for column in columns], color=(0.1, 0.4, 0.7), alpha=0.1 + 0.9 * shade
        )
    axes.set_xticks(range(len(columns)), [*names, picture.spec.metric], parse_math=False)
    axes.set_yticks([0, 1], ["lowest", "highest"])


def _draw_importance(figure: Any, picture: SweepPicture) -> None:
    axes = figure.add_subplot()
    shares = rank_parameters(picture.trials, picture.spec.mode, picture.varying)
    axes.barh([name for name, _ in reversed(shares)], [share for _, share in reversed(shares)])
    axes.set_xlim(0, 1)
    _label(axes, f"share of the variance of {picture.spec.metric} that it explains alone", "")


def _draw_steps(figure: Any, picture: SweepPicture) -> None:
    axes = figure.add_subplot()
    for trial in picture.trials:
        axes.barh(trial.number, trial.step, color=_COLOURS[trial.status])
    options = picture.spec.scheduler.options
    if picture.spec.scheduler.name == "asha":
        rung, factor = float(options.get("grace_period", 1)), float(options.get("reduction_factor", 4))
        while rung < float(options["max_t"]) and factor > 1:
            axes.axvline(rung, color="#222", linestyle=":")
            rung *= factor
    axes.invert_yaxis()
    axes.yaxis.get_major_locator().set_params(integer=True)
    _name_colours(axes, picture)
    _label(axes, "steps; dotted lines: where ASHA judges", "trial")


def _draw_lineage(figure: Any, picture: SweepPicture) -> None:
    axes = figure.add_subplot()
    for trial in picture.trials:
        axes.plot([0, trial.step], [trial.number, trial.number], color=_COLOURS[trial.status])
        for clone in trial.clones:
            arrow = {"arrowstyle": "->", "color": "#d62728"}
            axes.annotate("", (clone.step, trial.number), (clone.step, clone.donor), arrowprops=arrow)
    axes.invert_yaxis()
    axes.yaxis.get_major_locator().set_params(integer=True)
    _name_colours(axes, picture)
    _label(axes, "step; arrows: from whose checkpoint a trial went on", "trial")


def _draw_timeline(figure: Any, picture: SweepPicture) -> None:
    axes = figure.add_subplot()
    began_unix_s = min((trial.began_unix_s for trial in picture.trials), default=0.0)
    for trial in picture.trials:
        start_s = trial.began_unix_s - began_unix_s
        ended_unix_s = time.time() if trial.ended_unix_s is None else trial.ended_unix_s
        axes.barh(
            trial.number, ended_unix_s - trial.began_unix_s, left=start_s, color=_COLOURS[trial.status], alpha=0.7
        )
        for attempt in picture.attempts.get(trial.number, ()):
            if attempt.ended_unix_s is not None and attempt.cause not in (None, "stop"):
                marker = "v" if attempt.cause == "preemption" else "x"
                axes.scatter([attempt.ended_unix_s - began_unix_s], [trial.number], color="#222", marker=marker)
    axes.invert_yaxis()
    _name_colours(axes, picture)
    _label(axes, "seconds; triangles: a machine was taken away, crosses: another loss", "trial")


KINDS: Mapping[str, Callable[[Any, SweepPicture], None]] = {
    "history": _draw_history,
    "curves": _draw_curves,
    "slices": _draw_slices,
    "parallel": _draw_parallel,
    "importance": _draw_importance,
    "steps": _draw_steps,
    "lineage": _draw_lineage,
    "timeline": _draw_timeline,
}


def _scale(spec: SweepSpec, name: str, given: Sequence[Any]) -> list[float]:
    if all(_is_number(value) for value in given):
        is_log = spec.parameters[name].kind.startswith("log")
        return _spread([math.log(value) if is_log else float(value) for value in given])
    texts = sorted({str(value) for value in given})
    return _spread([float(texts.index(str(value))) for value in given])


def _spread(numbers: Sequence[float]) -> list[float]:
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(axes: Any, below: str, beside: str) -> None:
    axes.set_xlabel(below, parse_math=False)
    axes.set_ylabel(beside, parse_math=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _name_colours(axes: Any, picture: SweepPicture) -> None:
    """Entries for the legend that ``_label`` draws."""
    for status, colour in _COLOURS.items():
        if any(trial.status == status for trial in picture.trials):
            axes.plot([], [], color=colour, linewidth=6, label=status)
