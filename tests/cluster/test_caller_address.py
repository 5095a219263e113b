"""Who may use SSH: the addresses that are named, or this machine's own, and never everybody by mistake."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.storage_servers import find_free_port
from support.text_server import TextServer, serve_text

from periflow_ray.cluster import caller_address
from periflow_ray.cluster.caller_address import check_addresses, find_own_addresses
from periflow_ray.errors import ClusterError, UsageError


@pytest.mark.parametrize(
    ("given", "cidr"),
    [
        ("203.0.113.7", "203.0.113.7/32"),
        (" 203.0.113.7/32 ", "203.0.113.7/32"),
        ("203.0.113.77/24", "203.0.113.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_addresses_are_written_as_clouds_take_them(given: str, cidr: str) -> None:
    assert check_addresses(given, "--ssh-from") == cidr


@pytest.mark.parametrize(
    "given", ["", "my-laptop", "203.0.113", "203.0.113.7/33", "2001:db8::1", "203.0.113.7,10.0.0.1"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"--ssh-from: .* is no range of IPv4 addresses. Give one such as"):
        check_addresses(given, "--ssh-from")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextServer]:
    """The service that says from where it was asked."""
    with serve_text("203.0.113.7\n") as server:
        monkeypatch.setattr(caller_address, "_SERVICE", server.url)
        yield server


def test_this_machine_s_own_address_is_asked_for(service: TextServer) -> None:
    assert find_own_addresses() == "203.0.113.7/32"


@pytest.mark.parametrize(
    ("text", "status"), [("<html>Log in to the hotel's network</html>", 200), ("203.0.113.7", 503), ("", 200)]
)
def test_an_answer_that_is_no_address_is_an_error_that_says_what_to_give(
    service: TextServer, text: str, status: int
) -> None:
    service.text, service.status = text, status
    with pytest.raises(ClusterError, match=r"cannot be found out .* PERIFLOW_SSH_FROM=203.0.113.7/32"):
        find_own_addresses()


def test_without_the_internet_it_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_address, "_SERVICE", f"http://127.0.0.1:{find_free_port()}")
    with pytest.raises(ClusterError, match=r"--ssh-from"):
        find_own_addresses()
