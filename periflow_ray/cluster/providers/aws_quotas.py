"""EC2's quotas of vCPUs: each kind of instance has one for on-demand and one for spot."""

from __future__ import annotations

import re

# Codes of Service Quotas, the same in all accounts and regions.
_ON_DEMAND = {
    "standard": ("L-1216C47A", "Running On-Demand Standard instances"),
    "g": ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    "p": ("L-417A185B", "Running On-Demand P instances"),
}
_SPOT = {
    "standard": ("L-34B43A08", "All Standard Spot Instance Requests"),
    "g": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "p": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "p5": ("L-C4BD4855", "All P5 Spot Instance Requests"),
}

# A, C, D, H, I, M, R, T and Z; others that begin so (dl, hpc, inf, trn) have quotas of their own.
_STANDARD_FAMILIES = frozenset({"a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"})


def find_quota(instance_type: str, *, is_spot: bool) -> tuple[str, str] | None:
    """The code and the title of the quota that an instance counts for; None if it is not known."""
    quotas = _SPOT if is_spot else _ON_DEMAND
    match = re.match(r"([a-z]+)(\d*)", instance_type)
    if match is None:
        return None
    family, generation = match.groups()
    if family in ("g", "gr", "vt"):
        return quotas["g"]
    if family == "p":
        if not is_spot or generation in ("2", "3", "4"):
            return quotas["p"]
        return quotas.get(f"p{generation}")
    return quotas["standard"] if family in _STANDARD_FAMILIES else None
