"""The dated copy of prices in the user's data folder, which ``vm refresh`` writes and every command uses."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from periflow_ray.plan.catalogue import PriceCopy, use_prices
from periflow_ray.user_dirs import data_dir


def price_copy_path() -> Path:
    """Where it is, whether or not it is there."""
    return data_dir() / "prices.json"


def apply_price_copy() -> None:
    """Let the catalogue have the copy's prices, if there is one; one that cannot be read is told and left out."""
    path = price_copy_path()
    try:
        use_prices(read_price_copies(path.read_bytes()))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as err:
        print(f"Note: '{path}' cannot be read ({err}); prices are the catalogue's own.", file=sys.stderr)


def read_price_copies(content: bytes) -> dict[str, PriceCopy]:
    """The copies of a file, by cloud."""
    return {cloud: _read(entry) for cloud, entry in json.loads(content).items()}


def write_price_copies(copies: Mapping[str, PriceCopy]) -> Path:
    """Put copies beside those of other clouds that are there."""
    from periflow_ray.store.local_files import write_whole

    path = price_copy_path()
    try:
        known = read_price_copies(path.read_bytes())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        known = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {cloud: dataclasses.asdict(copy) for cloud, copy in {**known, **copies}.items()}
    write_whole(str(path), json.dumps(document).encode())
    return path


def _read(entry: Mapping[str, Any]) -> PriceCopy:
    usd = {
        instance_type: {
            region: (
                None if on_demand is None else float(on_demand),
                None if spot is None else (float(spot[0]), float(spot[1])),
            )
            for region, (on_demand, spot) in regions.items()
        }
        for instance_type, regions in entry["usd"].items()
    }
    return PriceCopy(str(entry["date"]), str(entry["source"]), usd)
