"""What attempts cost, on a job of two devices whose steps take 0.1 s each."""

from __future__ import annotations

from typing import Any

from periflow_ray.jobs import JobState
from periflow_ray.jobs.account import (
    AttemptAccount,
    JobAccount,
    build_account,
    describe_goodput,
    describe_lost,
    format_number,
)
from periflow_ray.jobs.attempts import AttemptRecord, SaveRecord, close_attempt, count_checkpoint

START_UNIX_S = 1000.0
RUNNING = JobState("running", START_UNIX_S)
STEP_TIME_S = 0.125


def attempt(
    number: int,
    *,
    at_s: float,
    steps: tuple[int, int],
    resumable_step: int | None = None,
    cause: Any = "failure",
    text: str = "node 0, rank 0: it was killed by SIGKILL.",
    save: SaveRecord | None = None,
    num_devices: int = 2,
) -> AttemptRecord:
    """An attempt that starts ``at_s`` seconds after the job, makes its first step 1 s later, and ends with its last."""
    resumed_step, last_step = steps
    first_step_unix_s = START_UNIX_S + at_s + 1
    last_step_unix_s = first_step_unix_s + (last_step - resumed_step - 1) * STEP_TIME_S
    has_steps = last_step > resumed_step
    return AttemptRecord(
        number=number,
        num_nodes=2,
        num_devices=num_devices,
        started_unix_s=START_UNIX_S + at_s,
        first_step_unix_s=first_step_unix_s if has_steps else None,
        last_step_unix_s=last_step_unix_s if has_steps else None,
        ended_unix_s=last_step_unix_s if has_steps else first_step_unix_s,
        resumed_step=resumed_step,
        last_step=last_step,
        resumable_step=last_step if resumable_step is None else resumable_step,
        cause=cause,
        text=text,
        save=save,
    )


def running(number: int, *, at_s: float, resumed_step: int, has_steps: bool = True) -> AttemptRecord:
    """An attempt as it is recorded at its first step."""
    first_step_unix_s = START_UNIX_S + at_s + 1 if has_steps else None
    return AttemptRecord(
        number=number,
        num_nodes=2,
        num_devices=2,
        started_unix_s=START_UNIX_S + at_s,
        first_step_unix_s=first_step_unix_s,
        last_step_unix_s=first_step_unix_s,
        ended_unix_s=None,
        resumed_step=resumed_step,
        last_step=resumed_step + has_steps,
        resumable_step=resumed_step,
        cause=None,
        text="",
    )


def texts(*records: AttemptRecord, state: JobState = RUNNING, **facts: Any) -> list[str]:
    account = build_account(records, state, now_unix_s=START_UNIX_S + 60, **facts)
    return [attempt.text for attempt in account.attempts]


def test_a_job_without_attempts_has_an_empty_account():
    account = build_account([], JobState("waiting"), now_unix_s=START_UNIX_S)
    assert account == JobAccount((), 0, 0, 0, 0, None)
    assert describe_goodput(account) == "not known yet"


def test_an_undisturbed_job_loses_its_start_only():
    record = attempt(1, at_s=0, steps=(0, 32), cause=None, text="")
    account = build_account([record], JobState("success"), now_unix_s=START_UNIX_S + 9999)
    assert account == JobAccount(
        attempts=(AttemptAccount(1, 2, 1000.0, 1004.875, 0, 32, None, "ran to the end at step 32", None, 0, 0.0),),
        num_lost_steps=0,
        lost_device_s=0.0,
        productive_device_s=2 * 32 * STEP_TIME_S,
        wall_device_s=2 * 4.875,
        goodput=8 / 9.75,
    )
    assert describe_goodput(account) == "82.1 % of 9.8 device-seconds made steps that were kept"


def test_a_killed_rank_costs_the_steps_since_the_checkpoint():
    killed = attempt(1, at_s=0, steps=(0, 48), resumable_step=40)
    goes_on = attempt(2, at_s=8, steps=(40, 72), cause=None, text="")
    account = build_account([killed, goes_on], JobState("success"), now_unix_s=0.0)
    assert account.attempts[0] == AttemptAccount(
        number=1,
        num_devices=2,
        started_unix_s=1000.0,
        ended_unix_s=1006.875,
        resumed_step=0,
        last_step=48,
        cause="failure",
        text="node 0, rank 0 was killed by SIGKILL at step 48; resumed at step 40 after 2.1 s; "
        "lost 8 steps, 2 device-seconds",
        downtime_s=9.0 - 6.875,
        num_lost_steps=8,
        lost_device_s=2.0,
    )
    assert (account.num_lost_steps, account.lost_device_s) == (8, 2.0)
    assert account.productive_device_s == 2 * 72 * STEP_TIME_S
    assert account.wall_device_s == 2 * (8 + 4.875)


def test_a_notice_with_a_save_costs_no_steps():
    taken = attempt(
        1,
        at_s=0,
        steps=(0, 81),
        cause="preemption",
        text="node 1 was taken away in 30 s",
        save=SaveRecord(30.0, 81, 3.14),
    )
    assert texts(taken, running(2, at_s=25, resumed_step=81)) == [
        "node 1 was taken away, 30 s notice; saved at step 81, 3.1 s after the notice; resumed at step 81 after 15 s; "
        "lost 0 steps, 0 device-seconds",
        "runs, at step 82",
    ]


def test_a_notice_that_was_too_short_says_so():
    taken = attempt(
        1,
        at_s=0,
        steps=(0, 17),
        resumable_step=16,
        cause="preemption",
        text="node 1 was taken away",
        save=SaveRecord(1.5, None, None),
    )
    assert texts(taken) == [
        "node 1 was taken away, 1.5 s notice; nothing was saved in time; not resumed yet; "
        "lost 1 step, 0.2 device-seconds"
    ]


def test_a_node_that_is_lost_without_a_word_a_hang_and_a_dead_driver():
    records = [
        attempt(1, at_s=0, steps=(0, 8), cause="lost", text="node 1 was lost: its agent or its machine died"),
        attempt(2, at_s=10, steps=(8, 16), cause="hang", text="no rank made a step for 60 s after step 16"),
        attempt(3, at_s=20, steps=(16, 24), cause="driver", text="the job's driver died"),
        running(4, at_s=30, resumed_step=24, has_steps=False),
    ]
    assert texts(*records) == [
        "node 1 was lost: its agent or its machine died at step 8; resumed at step 8 after 9.1 s; "
        "lost 0 steps, 0 device-seconds",
        "no rank made a step for 60 s after step 16; resumed at step 16 after 9.1 s; lost 0 steps, 0 device-seconds",
        "the job's driver died at step 24; not resumed yet; lost at least 0 steps, 0 device-seconds",
        "starts",
    ]


def test_an_attempt_that_never_made_a_step_is_part_of_the_time_to_resume():
    records = [
        attempt(1, at_s=0, steps=(0, 8)),
        attempt(2, at_s=4, steps=(8, 8), text="node 1: it ended with exit code 1."),
        attempt(3, at_s=12, steps=(8, 16), cause=None, text=""),
    ]
    assert texts(*records, state=JobState("success")) == [
        "node 0, rank 0 was killed by SIGKILL at step 8; resumed at step 8 after 11 s; lost 0 steps, 0 device-seconds",
        "node 1 ended with exit code 1 before its first step; resumed at step 8; lost 0 steps, 0 device-seconds",
        "ran to the end at step 16",
    ]


def test_the_last_end_of_a_failed_job_has_no_resumption():
    failed = attempt(1, at_s=0, steps=(0, 20), resumable_step=0)
    account = build_account([failed], JobState("failed", ended_unix_s=1010.0), now_unix_s=9999.0)
    assert account.attempts[0].text == (
        "node 0, rank 0 was killed by SIGKILL at step 20; lost 20 steps, 5 device-seconds"
    )
    assert (account.productive_device_s, account.goodput) == (0, 0)


def test_while_an_ended_job_waits_for_its_user_the_clock_stands_still():
    stopped = attempt(1, at_s=0, steps=(0, 40), cause="stop", text="stopped on request", save=SaveRecord(60.0, 40, 0.5))
    goes_on = attempt(2, at_s=100_000, steps=(40, 80), cause=None, text="", num_devices=4)
    account = build_account([stopped, goes_on], JobState("success"), now_unix_s=0.0, resumed_after={1})
    assert [attempt.text for attempt in account.attempts] == [
        "stopped on request; saved at step 40, 0.5 s after the request; taken up again at step 40; "
        "lost 0 steps, 0 device-seconds",
        "ran to the end at step 80",
    ]
    assert account.attempts[0].downtime_s is None
    assert account.wall_device_s == 5.875 * 2 + 5.875 * 4
    assert account.productive_device_s == 5 * 2 + 5 * 4


def test_steps_of_earlier_attempts_are_lost_when_a_checkpoint_turns_out_to_be_damaged():
    records = [
        attempt(1, at_s=0, steps=(0, 40)),
        attempt(2, at_s=10, steps=(40, 50), resumable_step=40),
        attempt(3, at_s=20, steps=(20, 60), cause=None, text=""),
    ]
    account = build_account(records, JobState("success"), now_unix_s=0.0)
    assert [attempt.num_lost_steps for attempt in account.attempts] == [0, 30, 0]
    assert account.productive_device_s == 2 * 60 * STEP_TIME_S


def test_a_running_attempt_counts_up_to_now():
    account = build_account(
        [running(1, at_s=0, resumed_step=0)], RUNNING, now_unix_s=START_UNIX_S + 11, step=81, resumable_step=0
    )
    assert account.attempts[0].text == "runs, at step 81"
    assert account.attempts[0].ended_unix_s is None
    assert account.wall_device_s == 22
    assert account.productive_device_s == 2 * 81 * STEP_TIME_S


def test_an_attempt_that_nobody_ended_died_with_the_driver():
    state = JobState("failed", ended_unix_s=START_UNIX_S + 11)
    record = running(1, at_s=0, resumed_step=0)
    account = build_account([record], state, now_unix_s=START_UNIX_S + 9999, step=101, resumable_step=81)
    assert account.attempts[0].text == "the job's driver died at step 101; lost at least 20 steps, 4 device-seconds"
    assert account.wall_device_s == 22


def test_one_step_alone_takes_as_long_as_those_of_the_other_attempts():
    records = [
        attempt(1, at_s=0, steps=(0, 41)),
        attempt(2, at_s=10, steps=(41, 42), resumable_step=41),
        attempt(3, at_s=20, steps=(41, 50), cause=None, text=""),
    ]
    account = build_account(records, JobState("success"), now_unix_s=0.0)
    assert account.lost_device_s == 2 * STEP_TIME_S


def test_closing_an_attempt_takes_the_pace_of_its_steps_so_far():
    seen = attempt(1, at_s=0, steps=(0, 41), resumable_step=0, cause=None, text="")
    open_record = AttemptRecord(**{**seen.__dict__, "ended_unix_s": None})
    closed = close_attempt(open_record, ended_unix_s=2000.0, last_step=57, resumable_step=40)
    assert (closed.last_step, closed.resumable_step, closed.ended_unix_s) == (57, 40, 2000.0)
    assert closed.last_step_unix_s == START_UNIX_S + 1 + 56 * STEP_TIME_S
    assert (closed.cause, closed.text) == ("driver", "the job's driver died")
    assert close_attempt(closed, ended_unix_s=3000.0, last_step=99, resumable_step=99) == closed


def test_what_a_checkpoint_holds_was_made_although_nobody_reported_it():
    closed = close_attempt(
        running(1, at_s=0, resumed_step=0), ended_unix_s=START_UNIX_S + 11, last_step=17, resumable_step=50
    )
    assert (closed.last_step, closed.resumable_step) == (50, 50)


def test_what_a_driver_saved_that_had_been_taken_for_dead_was_made():
    closed = close_attempt(
        running(1, at_s=0, resumed_step=0), ended_unix_s=START_UNIX_S + 11, last_step=17, resumable_step=50
    )
    late = count_checkpoint(closed, 60)
    assert (late.last_step, late.resumable_step) == (60, 60)
    assert count_checkpoint(late, 55) == late
    # Whatever a user put there since is not the work of an attempt whose end is known.
    failed = attempt(1, at_s=0, steps=(0, 41), resumable_step=40)
    assert count_checkpoint(failed, 60) == failed


def test_numbers_have_one_digit_after_the_point_below_ten():
    assert [format_number(value) for value in (0, 0.04, 1.25, 3.1, 9.94, 9.96, 14.4, 12345.6)] == [
        *("0", "0", "1.2", "3.1", "9.9", "10", "14", "12346")
    ]
    assert [describe_lost(1, 0.5), describe_lost(45, 4.6)] == [
        "1 step, 0.5 device-seconds",
        "45 steps, 4.6 device-seconds",
    ]
