"""Orders that come while an attempt prepares itself: kept for its code, in their order, and for no other attempt."""

from __future__ import annotations

from typing import cast

from periflow_ray.runtime.member.member import _Orders
from periflow_ray.runtime.member.shell import Shell
from periflow_ray.runtime.monitor.contract import EndAttempt, Order, ReportSteps


class PreparingShell:
    """A shell that can be told to give up what it prepares."""

    restarts_in_place = True
    num_ended = 0

    def end_preparation(self) -> None:
        self.num_ended += 1


def test_orders_are_carried_out_in_their_order_when_the_code_runs() -> None:
    orders = _Orders(cast(Shell, PreparingShell()))
    first, later, last = ReportSteps(), EndAttempt("failure"), EndAttempt("stop")
    done: list[Order] = []

    def carry_out(order: Order) -> None:
        if order is first:
            # The next one comes while this one is carried out.
            orders.take(later)
        done.append(order)

    orders.take(first)
    orders.hand_to(carry_out)
    orders.take(last)
    assert done == [first, later, last]


def test_an_order_that_is_late_ends_nothing_of_the_next_attempt() -> None:
    shell = PreparingShell()
    orders = _Orders(cast(Shell, shell))
    orders.take(EndAttempt())
    assert shell.num_ended == 1
    orders.close()
    orders.take(EndAttempt())
    assert shell.num_ended == 1
