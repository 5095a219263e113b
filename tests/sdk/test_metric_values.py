"""Whatever a script gives to ``pf.metric`` becomes JSON before it leaves the process."""

from __future__ import annotations

import decimal
import enum
import fractions
import json
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from support.workbench import wait_until

from periflow_ray.sdk.session import Session
from periflow_ray.sdk.values import plain_value, plain_values, values_of_now


class Phase(enum.IntEnum):
    TRAIN = 3


class Loud(str):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Broken:
    def __init__(self, method: str) -> None:
        self._method = method

    def item(self) -> Any:
        return self._raise("item") or self

    def __str__(self) -> str:
        return str(self._raise("str"))

    def _raise(self, method: str) -> Any:
        if method == self._method:
            raise KeyError("the user's class")
        return None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (2**64 - 1, 2**64 - 1),
        (-(2**64) + 1, -(2**64) + 1),
        (2**64, float(2**64)),
        (6 * 7_000_000_000 * 2_000_000_000_000, 8.4e22),
        (10**5000, "an integer of 16610 bits"),
        (Phase.TRAIN, 3),
        (np.float64(0.5), 0.5),
        (np.longdouble("1.5"), 1.5),
        (np.longdouble("1e4000"), math.inf),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.bytes_(b"x"), "b'x'"),
        (b"x", "b'x'"),
        (np.datetime64("2026-01-01"), "2026-01-01"),
        (np.complex128(1 + 2j), "(1+2j)"),
        (1 + 2j, "(1+2j)"),
        (torch.tensor(1 + 2j), "(1+2j)"),
        (np.array([1, 2]), "[1 2]"),
        (np.array("text"), "text"),
        (fractions.Fraction(1, 3), 1 / 3),
        (fractions.Fraction(10**400), str(10**400)),
        (decimal.Decimal("0.125"), 0.125),
        (decimal.Decimal("sNaN"), "sNaN"),
        (np.array(decimal.Decimal(2)), 2.0),
        (torch.tensor(0.1, dtype=torch.bfloat16), 0.10009765625),
        (torch.tensor(0.5, dtype=torch.float8_e4m3fn), 0.5),
        (torch.tensor([[2**64 - 1]], dtype=torch.uint64), 2**64 - 1),
        (torch.tensor(True), True),
        (Loud("quiet"), "quiet"),
        (Broken("item"), "None"),
        (Broken("str"), "<Broken>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_becomes_a_number_or_text_of_json_s_own_types(value: Any, expected: Any) -> None:
    plain = plain_value(value)
    assert (plain, type(plain)) == (expected, type(expected))
    assert json.loads(json.dumps(plain)) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), torch.tensor(-math.inf)])
def test_numbers_that_are_not_finite_stay_what_they_are(value: Any) -> None:
    plain = plain_value(value)
    assert type(plain) is float
    assert not math.isfinite(plain)


def test_a_bad_value_or_name_spoils_nothing_else() -> None:
    values = {"loss": 0.5, "bad": Broken("str"), Loud("name"): 1, Broken("str"): 2}
    assert plain_values(values) == {"loss": 0.5, "bad": "<Broken>", "name": 1, "<Broken>": 2}


def test_a_metric_is_what_it_was_when_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session()
    session.use_channel_factory(None)
    session.init(total_train_steps=3, local_log_name="metrics.log")
    running, hits, history, pair = torch.zeros((), requires_grad=False), np.zeros(()), [], torch.zeros(2)
    for step in range(1, 4):
        with session.train_step():
            running += 1.0
            hits += 10
            history.append(step)
            pair += 1
            session.metric({"running": running, "hits": hits, "history": history, "pair": pair})
    session.use_channel_factory(None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.log").read_text().splitlines()]
    assert [line["running"] for line in lines] == [1.0, 2.0, 3.0]
    assert [line["hits"] for line in lines] == [10, 20, 30]
    assert [line["history"] for line in lines] == ["[1]", "[1, 2]", "[1, 2, 3]"]
    assert [line["pair"] for line in lines] == [f"tensor([{step}., {step}.])" for step in (1, 2, 3)]


def test_a_metric_keeps_no_graph_of_the_loss():
    loss = (torch.ones(3, requires_grad=True) * 2).sum()
    kept = values_of_now({"loss": loss})["loss"]
    assert (type(kept), kept) == (float, 6.0)


@pytest.mark.gpu
def test_a_metric_of_a_stream_of_its_own_is_what_it_was_and_nothing_waits_for_it():
    stream, running = torch.cuda.Stream(), torch.zeros((), device="cuda")
    large = torch.ones(4096, 4096, device="cuda")
    kept = []
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(5):
            for _ in range(20):
                large = large @ large * 0
            running += 1 + large[0, 0]
            kept.append(values_of_now({"running": running}))
        assert not stream.query()
    # The thread that sends has another stream.
    assert [plain_values(values)["running"] for values in kept] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [type(values["running"]) for values in kept] != [torch.Tensor] * 5


@pytest.mark.gpu
def test_a_metric_is_read_while_the_device_is_busy_with_what_came_later():
    kept = values_of_now({"loss": torch.ones(3, device="cuda").sum()})
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 33)
    busy = torch.cuda.Event()
    busy.record()
    assert plain_values(kept) == {"loss": 3.0}
    assert not busy.query()
    torch.cuda.synchronize()


class OfAHangingDevice:
    """Stands in for a number of a device that does not come to it until the test says so."""

    def __init__(self) -> None:
        self.is_there = threading.Event()

    def item(self) -> float:
        self.is_there.wait()
        return 0.5


class Listener:
    """A channel that only notes the steps and metrics it is sent."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[Any] = []

    def open(self, *_: Any) -> None: ...

    def close(self, has_failed: bool = False) -> None: ...

    def send(self, step: int, records: list[Any], asked_step: int) -> None:
        self.steps.append(step)
        self.values += [record.values for record in records]


def test_the_job_hears_of_a_step_whose_metric_a_hanging_device_keeps_back(monkeypatch):
    monkeypatch.setattr("periflow_ray.sdk.session.values_of_now", dict)
    monkeypatch.setattr("periflow_ray.sdk.session._send_interval_s", lambda: 0.01)
    loss, listener, session = OfAHangingDevice(), Listener(), Session()
    session.use_channel_factory(lambda _: listener)
    session.init(total_train_steps=2)
    try:
        with session.train_step():
            session.metric({"loss": loss})
        wait_until(lambda: 1 in listener.steps, "the step", timeout_s=10)
        assert listener.values == []
    finally:
        loss.is_there.set()
    session.use_channel_factory(None)
    assert listener.values == [{"loss": 0.5}]
