"""A seed stands for a schedule, and the checks and tools of ``scripts/chaos`` do what they are there for."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chaos_run.events.connections import cut_connections
from chaos_run.events.registry import EVENTS, names_for
from chaos_run.invariants import check_while_running
from chaos_run.schedule import STORAGES, Setting, choose_setting, plan_events
from chaos_run.storages import Storage
from chaos_run.training import CLOCK_DIR, Training
from support.machines import Cluster
from support.stored_checkpoints import save

from periflow_ray.jobs.attempts import AttemptRecord, write_attempt
from periflow_ray.store.checkpoints import checkpoint_key

JOB_ID = 1
STOPPED = AttemptRecord(
    number=1,
    num_nodes=2,
    num_devices=2,
    started_unix_s=0.0,
    first_step_unix_s=1.0,
    last_step_unix_s=9.0,
    ended_unix_s=9.0,
    resumed_step=0,
    last_step=12,
    resumable_step=10,
    cause="failure",
    text="",
)
RESUMED = replace(STOPPED, number=2, resumed_step=10, last_step=10, ended_unix_s=None, cause=None)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """One that has a storage root, and a cluster that nobody has started."""
    storage = Storage("folder", str(tmp_path / "storage"))
    made = Training(tmp_path, Setting("folder", 2, False), storage, Cluster(tmp_path, storage.uri), num_steps=100)
    made.job_id = JOB_ID
    return made


def test_a_seed_gives_the_same_setting_and_schedule_again():
    names = names_for("S3")
    first = list(itertools.islice(plan_events(7, names), 100))
    assert first == list(itertools.islice(plan_events(7, names), 100))
    assert first != list(itertools.islice(plan_events(8, names), 100))
    assert choose_setting(7) == choose_setting(7)
    assert {choose_setting(seed).storage for seed in range(30)} == set(STORAGES)


def test_every_event_comes_before_any_comes_again_and_never_more_than_two_at_once():
    names = names_for("small disk")
    planned = list(itertools.islice(plan_events(1, names), 3 * len(names)))
    assert sorted(one.name for one in planned[: len(names)]) == sorted(names)
    assert not any(earlier.is_joined and later.is_joined for earlier, later in itertools.pairwise(planned))


def test_a_storage_has_its_own_faults_only():
    assert "storage: hang" in names_for("S3")
    assert "storage: full" in names_for("small disk")
    assert not any(name.startswith("storage: ") for name in names_for("folder"))
    assert {name for kind in STORAGES for name in names_for(kind)} == EVENTS.keys()
    assert names_for("S3", only=["kill rank", "storage: full"]) == ["kill rank"]


def test_a_committed_checkpoint_that_does_not_verify_is_found_unless_the_run_damaged_it(
    training: Training, tmp_path: Path
):
    manifest = save(training.root, tmp_path, {0: {"model.pt": b"weights"}})
    check_while_running(training)
    training.root.write_bytes(checkpoint_key(JOB_ID, manifest.checkpoint, "files/model.pt"), b"wEights")
    with pytest.raises(AssertionError, match="step-00000010 does not verify"):
        check_while_running(training)
    training.damaged.add(manifest.checkpoint)
    check_while_running(training)


def test_an_attempt_that_goes_on_from_an_older_checkpoint_is_found_unless_the_run_took_the_newest(training: Training):
    for attempt in (STOPPED, RESUMED):
        write_attempt(training.root, JOB_ID, attempt)
    check_while_running(training)
    write_attempt(training.root, JOB_ID, replace(RESUMED, resumed_step=5))
    with pytest.raises(AssertionError, match="steps lost"):
        check_while_running(training)
    training.lost_on_purpose.add(STOPPED.number)
    check_while_running(training)
    write_attempt(training.root, JOB_ID, replace(RESUMED, resumed_step=13))
    with pytest.raises(AssertionError, match="steps from nowhere"):
        check_while_running(training)


def test_connections_of_another_process_are_cut():
    program = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1))"
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", program, str(server.getsockname()[1])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            connection, _ = server.accept()
            with connection:
                assert cut_connections(client.pid) == 1
                assert connection.recv(1) == b""
            assert client.communicate(timeout=30)[0] == "b''\n"


def test_the_clock_of_a_machines_programs_can_be_moved(tmp_path: Path):
    (tmp_path / "clock-offset").write_text("-3600")
    env = {**os.environ, "RAY_TMPDIR": str(tmp_path), "PYTHONPATH": str(CLOCK_DIR)}
    program = "import time; print(time.time(), time.time_ns() / 1e9)"
    before_s = time.time()
    printed = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout
    for moved_s in map(float, printed.split()):
        assert before_s <= moved_s + 3600 <= time.time()
