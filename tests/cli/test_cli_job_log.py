from __future__ import annotations

import json

import pytest
from support.sample_jobs import build_record

from periflow_ray.cli import job_log
from periflow_ray.cli.log_view import LogView
from periflow_ray.jobs import JobState, write_record, write_state
from periflow_ray.jobs.logs import LogLine, LogWriter
from periflow_ray.store import segments

LINES = [
    "[job] Attempt 1 starts on 2 nodes.",
    "[node 0] step 1 loss 2.5",
    "[node 1] step 1 loss 2.75",
    "[node 0] step 2 loss 2.25",
    "[node 1] [rank1] 50% done",
    "[job] Every node ended with exit code 0.",
]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], LINES),
        (["-n", "2"], LINES[-2:]),
        (["-n", "0"], []),
        (["-n", "2", "--head"], LINES[:2]),
        (["-c", "loss"], LINES[1:4]),
        (["-c", "loss", "-n", "1"], LINES[3:4]),
        (["-m", "0"], [LINES[1], LINES[3]]),
        (["-m", "0,1"], LINES[1:5]),
        (["-m", "1", "-c", "[rank1]"], [LINES[4]]),
    ],
)
def test_lines_carry_their_node_and_can_be_chosen(run_cli, sample_root, options, lines):
    result = run_cli("job", "log", "1", *options)
    assert (result.exit_code, result.stdout.splitlines(), result.stderr) == (0, lines, "")


def test_a_job_on_one_node_names_it_only_on_request(run_cli, root):
    write_record(root, build_record(1, num_nodes=1, num_devices=1))
    write_state(root, 1, JobState("success"))
    writer = LogWriter(root, 1, 0)
    writer.write("\x1b[1mepoch\x1b[0m  1   " + "x" * 300)
    writer.flush()
    assert run_cli("job", "log", "1").stdout == "\x1b[1mepoch\x1b[0m  1   " + "x" * 300 + "\n"
    assert run_cli("job", "log", "1", "--show-machine-id").stdout.startswith("[node 0] \x1b[1mepoch")


def test_times_stand_before_the_node(run_cli, sample_root):
    result = run_cli("job", "log", "1", "-t", "-n", "2")
    assert result.stdout == (
        "2026-01-01T00:00:04.000+00:00 [node 1] [rank1] 50% done\n"
        "2026-01-01T00:00:09.000+00:00 [job] Every node ended with exit code 0.\n"
    )


def test_every_line_of_the_jobs_own_diagnosis_is_marked():
    line = LogLine(0, None, "node 0 failed: exit code 1\n  Traceback ...")
    assert LogView().describe(line) == "[job] node 0 failed: exit code 1\n[job]   Traceback ..."


def test_json_is_a_list_of_lines(run_cli, sample_root):
    assert json.loads(run_cli("job", "log", "1", "-n", "1", "--head", "-o", "json").stdout) == [
        {"time": "2026-01-01T00:00:00.000+00:00", "node": None, "text": "Attempt 1 starts on 2 nodes."}
    ]


def test_export_writes_all_lines_unless_told_how_many(run_cli, sample_root, tmp_path):
    writer = LogWriter(sample_root, 1, 0)
    for index in range(200):
        writer.write(f"more {index}")
    writer.flush()
    path = tmp_path / "job.log"
    result = run_cli("job", "log", "1", "-e", str(path))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"Wrote 206 lines to {path}.\n")
    assert path.read_text().splitlines()[:4] == LINES[:4]
    run_cli("job", "log", "1", "-e", str(path), "-n", "1")
    assert path.read_text() == "[node 0] more 199\n"


@pytest.mark.parametrize("option", [["--head"], ["-e", "job.log"], ["-o", "json"]])
def test_follow_excludes_head_and_export(run_cli, sample_root, option):
    result = run_cli("job", "log", "1", "-f", *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: --follow shows lines as they come: it cannot be used with --head, --export-path or --output.\n"
    )


@pytest.mark.parametrize("machine", ["2", "0,x", "", "-1"])
def test_a_node_that_the_job_has_not_is_a_usage_error(run_cli, sample_root, machine):
    result = run_cli("job", "log", "1", "-m", machine)
    wrong = machine.split(",")[-1]
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: --machine {machine}: job 1 has nodes 0 to 1, got '{wrong}'.\n",
    )


def test_following_an_ended_job_shows_its_last_lines_and_exits_as_the_job_did(run_cli, sample_root):
    result = run_cli("job", "log", "1", "--follow", "-n", "2")
    assert (result.exit_code, result.stdout.splitlines()) == (0, LINES[-2:])
    assert result.stderr == "Job (1) 20/20 steps (100 %), 2.5 steps/s, loss 0.25\n"
    result = run_cli("job", "log", "2", "--follow")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: job 2 failed: node 0 failed: exit code 1.\nModuleNotFoundError: No module named 'einops'\n"
    )


@pytest.mark.parametrize("max_last_lines", [100_000, 0])
def test_the_end_of_a_very_long_log_is_the_end_of_all_its_streams(run_cli, root, monkeypatch, max_last_lines):
    monkeypatch.setattr(job_log, "_MAX_LAST_LINES", max_last_lines)
    monkeypatch.setattr(segments, "_FIRST_BLOCK_BYTES", 1000)
    write_record(root, build_record(1, num_nodes=2, num_devices=2))
    write_state(root, 1, JobState("success"))
    for node_rank in range(2):
        writer = LogWriter(root, 1, node_rank)
        for number in range(node_rank, 4000, 2):
            writer.write(f"line {number}", time_unix_ms=number)
        writer.flush()
    lines = [f"[node {number % 2}] line {number}" for number in range(4000)]
    assert run_cli("job", "log", "1", "-n", "50").stdout.splitlines() == lines[-50:]
    assert run_cli("job", "log", "1", "-n", "3", "-m", "1").stdout.splitlines() == [lines[at] for at in (-5, -3, -1)]
    assert run_cli("job", "log", "1", "-n", "50", "-f").stdout.splitlines() == lines[-50:]
    assert run_cli("job", "log", "1", "-n", "2", "-c", "line 1").stdout.splitlines() == [lines[1998], lines[1999]]
    assert run_cli("job", "log", "1", "-n", "2", "-c", "line 0").stdout.splitlines() == lines[:1]
    assert run_cli("job", "log", "1", "-n", "2", "--head").stdout.splitlines() == lines[:2]
