"""The embedded cluster, looked at and ended by its commands; one of its own, because its end is what is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.workbench import processes_with, wait_until

pytestmark = pytest.mark.ray


def run(*words: str, env: dict[str, str], input: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "periflow_ray.cli.main", *words]
    return subprocess.run(argv, env=env, input=input, capture_output=True, text=True, check=False, timeout=180)


def test_the_embedded_cluster_is_shown_and_ended_with_the_job_on_it(tmp_path: Path) -> None:
    cluster_dir = tmp_path / "cluster"
    variables = {"PERIFLOW_STORAGE": str(tmp_path / "storage"), "PERIFLOW_LOCAL_CLUSTER_DIR": str(cluster_dir)}
    env = {**os.environ, **variables}
    template = tmp_path / "pf-template.yml"
    template.write_text(
        "vm: local\nnum_devices: 1\njob_setting:\n  type: custom\n  docker:\n    command: echo ready; sleep 600\n"
    )
    assert json.loads(run("local", "status", "-o", "json", env=env).stdout) == {"is_running": False}
    assert run("local", "stop", env=env).stderr == "The embedded cluster does not run.\n"

    submitted = run("submit", "-f", str(template), "--no-follow", "--name", "long", env=env)
    assert submitted.returncode == 0, submitted.stderr
    try:
        wait_until(lambda: "ready" in run("job", "log", "long", env=env).stdout, "the job runs", 120)
        shown = json.loads(run("local", "status", "-o", "json", env=env).stdout)
        assert (shown["is_running"], shown["num_running_jobs"]) == (True, 1)
        refused = run("local", "stop", env=env)
        assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    finally:
        ended = run("local", "stop", "--yes", env=env)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (0, "The embedded cluster has ended.")
    wait_until(lambda: not processes_with(str(cluster_dir)), "nothing of the cluster is left", 60)
    assert json.loads(run("job", "view", "long", "-o", "json", env=env).stdout)["status"] == "stopped"
