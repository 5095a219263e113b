"""Runs a training under a random schedule: ``scripts/chaos [--minutes 8] [--seed N] [--only EVENT ...]``.

Prints each event as it comes and a table at the end. The exit code is 1 if a promise was broken; the seed then gives
the same schedule again. With ``--only`` there are only these events, in another order.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time

from chaos_run.events.registry import EVENTS
from chaos_run.run import BrokenPromiseError, Happened, run_chaos


def main() -> int:
    """Run the chaos that the command line asks for."""
    options = _parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)

    happened: list[Happened] = []
    try:
        run_chaos(options.seed, options.minutes, options.only, happened, say)
    except BrokenPromiseError as err:
        say(f"BROKEN {err}")
        _print_table(happened)
        only = "".join(f" --only '{name}'" for name in options.only)
        print(f"run it again: scripts/chaos --minutes {options.minutes:g} --seed {options.seed}{only}")
        return 1
    _print_table(happened)
    print(f"seed {options.seed}: every promise was kept through {len(happened)} events")
    return 0


def _print_table(happened: list[Happened]) -> None:
    print(f"\n{'event':30} {'recovery':>9}  what")
    for one in happened:
        recovery = "joined" if one.recovery_s is None else f"{one.recovery_s:.1f} s"
        print(f"{one.planned.number:3} {one.planned.name:26} {recovery:>9}  {one.said}")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="One training, and everything that may happen.")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long events come  [default: 8]")
    parser.add_argument("--seed", type=int, help="of the schedule and the setting  [default: a random one]")
    parser.add_argument("--only", action="append", default=[], choices=list(EVENTS), metavar="EVENT", help="these only")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(10**6)
    return options


if __name__ == "__main__":
    sys.exit(main())
