"""Measures figures and prints one row each: ``scripts/bench --all`` or ``scripts/bench NAME... [--json FILE]``.

Standard output is one table, standard error has notes. The column "varied" is how far the baseline itself went up and
down in this run: a smaller difference between ours and the baseline means nothing. The exit code says whether
everything could be measured, not whether the goals are met: a busy machine must not break a build.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from bench_figures.programs import note
from bench_figures.registry import FIGURES
from bench_figures.row import HEADER, Row
from periflow_ray.errors import PeriflowRayError


def main() -> int:
    """Measure the figures named on the command line, or all."""
    options = _parse_options()
    # A figure then cleans up after itself when somebody ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    failed: list[str] = []
    print(HEADER, flush=True)
    for name in FIGURES if options.all else options.names:
        try:
            measured = FIGURES[name]()
        except (PeriflowRayError, OSError) as err:
            note(f"{name} could not be measured: {err}")
            failed.append(name)
            continue
        for row in measured:
            print(row.as_line(), flush=True)
        rows += measured
    if options.json is not None:
        options.json.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure figures of speed against their baselines, in one run."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"figures: {', '.join(FIGURES)}")
    parser.add_argument("--all", action="store_true", help="measure all of them, as without any name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as a list of JSON objects")
    options = parser.parse_args()
    if options.all and options.names:
        parser.error("--all or names, not both")
    options.all = not options.names
    unknown = [name for name in options.names if name not in FIGURES]
    if unknown:
        parser.error(f"no such figure: {', '.join(unknown)}. Figures: {', '.join(FIGURES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
