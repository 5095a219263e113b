"""Which addresses may use SSH: those that the user names, or the one that this machine has on the internet."""

from __future__ import annotations

import ipaddress

import requests

from periflow_ray.errors import ClusterError, UsageError

# Says from where it was asked; AWS's own, and of the same use for other clouds.
_SERVICE = "https://checkip.amazonaws.com"
_TIMEOUT_S = 10.0


def check_addresses(cidr: str, given_by: str) -> str:
    """Addresses in CIDR notation, as clouds take them; one address alone means itself.

    Args:
        given_by: the option or the variable, for the error.
    Raises:
        UsageError: they are none.
    """
    try:
        return str(ipaddress.IPv4Network(cidr.strip(), strict=False))
    except ValueError as err:
        raise UsageError(
            f"{given_by}: '{cidr}' is no range of IPv4 addresses. Give one such as 203.0.113.7/32; 0.0.0.0/0 is all."
        ) from err


def find_own_addresses() -> str:
    """This machine's address on the internet, in CIDR notation.

    Raises:
        ClusterError: it cannot be found out.
    """
    try:
        answer = requests.get(_SERVICE, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return str(ipaddress.IPv4Network(answer.text.strip()))
    except (requests.RequestException, ValueError) as err:
        raise ClusterError(
            f"this machine's address on the internet cannot be found out ({_SERVICE}: {type(err).__name__}). Name "
            "the addresses that may use SSH: PERIFLOW_SSH_FROM=203.0.113.7/32, or --ssh-from of 'cluster up'"
        ) from err
