from __future__ import annotations

import io

import pytest
from rich.console import Console

from periflow_ray.cli.progress import LiveProgress, PlainProgress, describe_progress
from periflow_ray.jobs import JobProgress, JobState


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (JobProgress(), ""),
        (JobProgress(0, 1000), "0/1000 steps (0 %)"),
        (
            JobProgress(120, 1000, 3.2, {"lr": 0.1, "loss": 0.5321987}),
            "120/1000 steps (12 %), 3.2 steps/s, ETA 4m 35s, loss 0.532199",
        ),
        (JobProgress(7, None, 0.5, {"train_loss": 2}), "step 7, 0.5 steps/s, train_loss 2"),
        (JobProgress(1000, 1000, 3.2), "1000/1000 steps (100 %), 3.2 steps/s"),
        (JobProgress(330, 180, 3.2), "330 steps, 150 more than the 180 that pf.init was told, 3.2 steps/s"),
        (JobProgress(1, 2, 0.0, {"accuracy": 0.5}), "1/2 steps (50 %)"),
    ],
)
def test_progress_in_words(progress, text):
    assert describe_progress(progress) == text


def test_plain_progress_prints_at_most_every_ten_seconds_or_ten_percent():
    out = io.StringIO()
    now_s = [0.0]
    display = PlainProgress(Console(file=out), 3, clock=lambda: now_s[0])
    running = JobState("running", attempt=1)
    display.show(JobState("waiting", message="no VM is free"), JobProgress())
    times_and_steps = ((1, 1), (2, 2), (3, 90), (4, 101), (13.9, 110), (14, 111), (15, 111), (60, 111))
    for now_s[0], step in times_and_steps:
        display.show(running, JobProgress(step, 1000))
    display.show(JobState("running", attempt=2), JobProgress(5, 1000))
    display.show(JobState("success"), JobProgress(6, 1000))
    assert out.getvalue().splitlines() == [
        "Job (3) waiting: no VM is free",
        "Job (3) running",
        "Job (3) 1/1000 steps (0 %)",
        "Job (3) 101/1000 steps (10 %)",
        "Job (3) 111/1000 steps (11 %)",
        "Job (3) running (attempt 2)",
        "Job (3) 5/1000 steps (0 %)",
        "Job (3) 6/1000 steps (0 %)",
    ]


def test_the_live_line_never_reaches_the_edge_of_the_terminal():
    out = io.StringIO()
    display = LiveProgress(Console(file=out, force_terminal=True, width=30))
    display.show(JobState("running"), JobProgress(999, 1000, 1.0, {"loss": 1.0}))
    line = "running 999/1000 steps (99 %)"
    assert out.getvalue() == line
    display.hide()
    display.hide()
    assert out.getvalue() == f"{line}\r\x1b[2K"


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (102, "running ████████░░░░░░░░░░░░ 20000/50000 steps (40 %), 4.62 steps/s, ETA 1h 48m 14s, loss 0.143321"),
        (80, "running 20000/50000 steps (40 %), 4.62 steps/s, ETA 1h 48m 14s, loss 0.143321"),
        (75, "running ████░░░░░░ 20000/50000 steps (40 %), ETA 1h 48m 14s, loss 0.143321"),
        (60, "running ████░░░░░░░ 20000/50000 steps (40 %), loss 0.143321"),
    ],
)
def test_the_live_line_keeps_the_loss(width, line):
    out = io.StringIO()
    progress = JobProgress(20_000, 50_000, 4.62, {"loss": 0.1433210})
    LiveProgress(Console(file=out, force_terminal=True, width=width)).show(JobState("running"), progress)
    assert out.getvalue() == line


def test_before_the_first_step_the_line_says_what_is_not_there_yet():
    out = io.StringIO()
    now_s = [0.0]
    plain = PlainProgress(Console(file=out), 3, clock=lambda: now_s[0])
    running = JobState("running", attempt=1)
    for now_s[0], progress in (
        (0.0, JobProgress()),
        (9.0, JobProgress()),
        (11.0, JobProgress()),
        (40.0, JobProgress()),
        (41.0, JobProgress(0, 500)),
        (52.0, JobProgress(0, 500)),
        (53.0, JobProgress(1, 500)),
    ):
        plain.show(running, progress)
    assert out.getvalue().splitlines() == [
        "Job (3) running",
        "Job (3) no pf.init() yet: the script imports and prepares",
        "Job (3) pf.init() was called, and the first step is not done",
        "Job (3) 1/500 steps (0 %)",
    ]
    live = io.StringIO()
    LiveProgress(Console(file=live, force_terminal=True, width=80)).show(running, JobProgress())
    assert live.getvalue() == "running: no pf.init() yet: the script imports and prepares"
    live = io.StringIO()
    sweep = LiveProgress(Console(file=live, force_terminal=True, width=80), is_sweep=True)
    sweep.show(running, JobProgress())
    assert live.getvalue() == "running"
    sweep.show(running, JobProgress(11, 12))
    assert live.getvalue().endswith(" 11/12 trials (91 %)")


def test_the_live_line_says_why_a_job_waits():
    out = io.StringIO()
    LiveProgress(Console(file=out, force_terminal=True, width=80)).show(
        JobState("waiting", message="no VM\nis free"), JobProgress()
    )
    assert out.getvalue() == "waiting: no VM is free"
