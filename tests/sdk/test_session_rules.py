"""The SDK's calls outside and inside a job.

Long because each rule of PeriFlow's calls has its example.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.errors import PeriFlowError
from periflow_ray.sdk.channel import Hello
from periflow_ray.sdk.session import Session


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def close(session: Session) -> None:
    session.use_channel_factory(None)


class BlockingChannel:
    """Delivers nothing until it is released."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.entered = threading.Event()
        self.released = threading.Event()
        self.num_records = 0

    def open(self, hello: Hello, on_announced_step: Any, read_step: Any) -> None:
        self.hello = hello
        self.announce = on_announced_step

    def send(self, step: int, records: Any, asked_step: int) -> None:
        self.entered.set()
        self.released.wait()
        self.num_records += len(records)

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        pass

    def close(self, has_failed: bool = False) -> None:
        pass


@pytest.mark.parametrize(
    "name", ["start_step", "end_step", "train_step", "metric", "is_emergency_save", "upload_checkpoint"]
)
def test_every_call_before_init_is_refused(session, name):
    calls = {"metric": lambda: session.metric({"loss": 1}), "train_step": lambda: session.train_step().__enter__()}
    named = "start_step" if name == "train_step" else name
    assert session.is_initialized() is False
    with pytest.raises(PeriFlowError) as caught:
        calls.get(name, getattr(session, name))()
    assert str(caught.value) == (
        f"{named}() was called before init(). Call init(total_train_steps) once, before every other SDK function, in "
        "every process that trains."
    )


def test_a_step_is_started_once_and_ended_once(session):
    session.init(total_train_steps=10)
    session.start_step()
    with pytest.raises(PeriFlowError) as caught:
        session.start_step()
    assert str(caught.value) == (
        "start_step() was called twice: step 1 has not ended. Call end_step() first, or use 'with train_step():'."
    )
    session.end_step()
    with pytest.raises(PeriFlowError) as caught:
        session.end_step()
    assert str(caught.value) == "end_step() was called without start_step()."


def test_a_step_that_raises_has_ended(session):
    session.init(total_train_steps=10)
    with pytest.raises(ZeroDivisionError), session.train_step():
        1 / 0  # noqa: B018
    with session.train_step():
        pass


@pytest.mark.parametrize("total", [0, -5, 1.5, "10", True])
def test_a_total_that_is_no_number_of_steps_is_refused(session, total):
    with pytest.raises(PeriFlowError) as caught:
        session.init(total_train_steps=total)
    assert str(caught.value) == f"total_train_steps must be a whole number of at least 1, not {total!r}."
    assert session.is_initialized() is False


@pytest.mark.parametrize("total", [99, 100])
def test_a_total_that_the_resumed_step_has_reached_is_refused(session, monkeypatch, total):
    monkeypatch.setenv("PROCESSED_ITERS", "100")
    with pytest.raises(PeriFlowError) as caught:
        session.init(total_train_steps=total)
    assert str(caught.value) == (
        f"total_train_steps is {total}, but this job resumes at step 100: nothing is left to train. Count "
        "total_train_steps from the start of the training, not from the resumed step."
    )
    session.init(total_train_steps=101)


def test_a_job_that_is_restarted_after_its_last_step_may_come_to_its_end(session, monkeypatch):
    monkeypatch.setenv("PROCESSED_ITERS", "100")
    monkeypatch.setenv("PERIFLOW_ATTEMPT", "2")
    session.init(total_train_steps=100)
    session.metric({"accuracy": 0.9})
    close(session)
    with pytest.raises(PeriFlowError, match="nothing is left to train"):
        session.init(total_train_steps=99)


def test_steps_count_on_from_the_resumed_one(session, monkeypatch):
    monkeypatch.setenv("PROCESSED_ITERS", "100")
    session.init(total_train_steps=200, local_log_name="run.log")
    for loss in (0.5, 0.25):
        with session.train_step():
            session.metric({"loss": loss})
    close(session)
    assert [line["step"] for line in read_log(Path("run.log"))] == [101, 102]


def test_outside_a_job_metrics_are_lines_of_json(session, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    session.init(local_log_name="run.log")
    session.metric({"phase": "warm-up"})
    with session.train_step():
        session.metric({"loss": 0.5, "lr": 1})
        session.metric({})
        session.upload_checkpoint()
    session.metric({"손실": None})
    close(session)
    own = {"rank": 3, "local_rank": 1}
    assert read_log(Path("run.log")) == [
        {"step": 0, **own, "phase": "warm-up"},
        {"step": 1, **own, "loss": 0.5, "lr": 1},
        {"step": 1, **own},
        {"step": 1, **own, "손실": None},
    ]


def test_a_mapping_that_is_changed_after_the_call_was_recorded_as_it_was(session):
    session.init(local_log_name="run.log")
    values = {"loss": 1.0}
    session.metric(values)
    values["loss"] = 2.0
    close(session)
    assert read_log(Path("run.log"))[0]["loss"] == 1.0


def test_values_of_numpy_and_torch_become_numbers_and_others_text(session):
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    session.init(local_log_name="run.log")
    session.metric(
        {
            "float32": numpy.float32(0.5),
            "int64": numpy.int64(3),
            "array": numpy.array([7]),
            "tensor": torch.tensor(0.25, requires_grad=True),
            "half": torch.tensor(2.0, dtype=torch.bfloat16),
            "flag": torch.tensor(True),
            "vector": torch.tensor([1, 2]),
            "list": [1, 2],
            5: "a name that is a number",
        }
    )
    close(session)
    assert read_log(Path("run.log")) == [
        {
            "step": 0,
            "rank": 0,
            "local_rank": 0,
            "float32": 0.5,
            "int64": 3,
            "array": 7,
            "tensor": 0.25,
            "half": 2.0,
            "flag": True,
            "vector": "tensor([1, 2])",
            "list": "[1, 2]",
            "5": "a name that is a number",
        }
    ]


@pytest.mark.parametrize(
    ("variables", "suffix"),
    [
        ({}, ""),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "1"}, ""),
        ({"RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "_0"),
        ({"RANK": "3"}, "_3"),
        ({"NODE_RANK": "2", "NPROC_PER_NODE": "4", "LOCAL_RANK": "1"}, "_9"),
    ],
)
def test_the_default_log_has_the_time_and_where_there_are_several_the_rank(session, monkeypatch, variables, suffix):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before_unix_s = int(time.time())
    session.init()
    session.metric({"loss": 1})
    close(session)
    (path,) = Path.cwd().iterdir()
    match = re.fullmatch(rf"periflow_trainer_(\d+){suffix}\.log", path.name)
    assert match is not None
    assert before_unix_s <= int(match[1]) <= time.time()


def test_without_metrics_there_is_no_log(session):
    session.init(total_train_steps=2)
    with session.train_step():
        pass
    close(session)
    assert list(Path.cwd().iterdir()) == []


def test_a_second_init_begins_a_new_session_and_finishes_the_first(session):
    session.init(local_log_name="first.log")
    with session.train_step():
        session.metric({"loss": 1})
    session.init(local_log_name="second.log")
    assert [line["step"] for line in read_log(Path("first.log"))] == [1]
    with session.train_step():
        session.metric({"loss": 2})
    close(session)
    assert [line["step"] for line in read_log(Path("second.log"))] == [1]


def test_the_announced_step_is_the_one_to_save_at(session):
    channel = BlockingChannel()
    channel.released.set()
    session.use_channel_factory(lambda local_log_name: channel)
    session.init()
    channel.announce(2)
    seen = []
    for _ in range(3):
        with session.train_step():
            seen.append(session.is_emergency_save())
    assert seen == [False, True, False]
    channel.announce(-1)
    assert session.is_emergency_save() is True


def test_a_step_never_waits_for_the_listener(session):
    channel = BlockingChannel()
    session.use_channel_factory(lambda local_log_name: channel)
    session.init(total_train_steps=10_000)
    session.metric({"loss": 0.0})
    assert channel.entered.wait(timeout=60)
    try:
        for _ in range(10_000):
            with session.train_step():
                session.metric({"loss": 1.0, "lr": 0.1})
                assert session.is_emergency_save() is False
        assert channel.num_records == 0
    finally:
        channel.released.set()
    close(session)
    assert channel.num_records == 10_001


def test_a_forked_child_does_not_speak_for_its_parent():
    script = """
import os
import periflow_ray as pf
pf.init(local_log_name="run.log")
pf.metric({"who": "parent"})
child = os.fork()
if child == 0:
    assert pf.is_initialized() is False
    try:
        pf.metric({"who": "child"})
    except pf.PeriFlowError as err:
        print(err)
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
pf.metric({"who": "parent again"})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("metric() was called before init().")
    assert [line["who"] for line in read_log(Path("run.log"))] == ["parent", "parent again"]


def test_metrics_of_a_script_that_raises_are_not_lost():
    script = "import periflow_ray as pf\npf.init(local_log_name='run.log')\npf.metric({'loss': 1})\nraise SystemExit(3)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3
    assert read_log(Path("run.log")) == [{"step": 0, "rank": 0, "local_rank": 0, "loss": 1}]


def test_importing_the_sdk_imports_nothing_heavy():
    script = """
import sys
import periflow_ray
import periflow_ray.sdk.socket_channel
print(sorted({"ray", "torch", "click", "numpy", "fsspec", "pydantic", "rich", "yaml"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_unmodified_periflow_script_runs_with_the_shim():
    shim_dir = Path(sys.modules["periflow_ray.sdk"].__file__).parent / "shim"
    script = """
import periflow_sdk as pf
pf.init(total_train_steps=2, local_log_name="run.log")
for _ in range(2):
    with pf.train_step():
        pf.metric({"loss": 1.0})
        if pf.is_emergency_save():
            pf.upload_checkpoint()
pf.upload_checkpoint()
"""
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(shim_dir)}, check=True)
    assert [line["step"] for line in read_log(Path("run.log"))] == [1, 2]


def test_nothing_is_logged_outside_a_job(session, caplog):
    with caplog.at_level(logging.DEBUG):
        session.init(local_log_name="run.log")
        with session.train_step():
            session.metric({"loss": 1})
        session.upload_checkpoint()
        close(session)
    assert caplog.records == []
