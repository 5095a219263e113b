"""Jobs that bring packages, on real Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_wheels import make_wheel, offline
from support.workbench import Workbench

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.environments import read_environments
from periflow_ray.jobs.logs import read_logs

pytestmark = pytest.mark.ray

WriteJob = Callable[..., tuple[Path, Path]]

# Its first attempt fails.
SCRIPT = """
import os, sys, tiny, later
import periflow_sdk as pf

pf.init(total_train_steps=2)
for step in range(2):
    with pf.train_step():
        pass
print(f"trained in attempt {os.environ['PERIFLOW_ATTEMPT']} with {tiny.__version__} and {later.__version__}")
sys.exit(os.environ["PERIFLOW_ATTEMPT"] == "1")
"""


def env_options(wheels: Path) -> list[object]:
    return [part for name, value in offline(wheels).items() for part in ("--env", f"{name}={value}")]


def freeze() -> str:
    command = [sys.executable, "-m", "pip", "freeze", "--all"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_job_brings_packages_and_installs_some_and_the_cluster_is_as_it_was(
    workbench: Workbench, write_job: WriteJob, tmp_path: Path
) -> None:
    before = freeze()
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "tiny", "1.0")
    make_wheel(wheels, "later", "2.0")
    template, workspace = write_job(SCRIPT, extra="max_failures: 1\n")
    (workspace / "requirements.txt").write_text("tiny\n")
    text = template.read_text().replace("  docker:\n", "  python: {requirements: requirements.txt}\n  docker:\n")
    text = text.replace(
        "command: |\n      cd /workspace/app && python main.py",
        "command: {setup: 'cd /workspace/app; pip install later', run: python main.py, teardown: echo tidied up}",
    )
    template.write_text(text)

    outcome, job = workbench.submit(template, workspace, *env_options(wheels))

    assert outcome.exit_code == 0, outcome
    (record,) = read_environments(workbench.root, job.record.job_id)
    assert (list(record.packages), list(record.installed)) == (["tiny==1.0"], ["later==2.0"])
    lines = [line.text for line in read_logs(workbench.root, job.record.job_id)]
    assert [line for line in lines if line.startswith("trained ")] == [
        "trained in attempt 1 with 1.0 and 2.0",
        "trained in attempt 2 with 1.0 and 2.0",
    ]
    assert sum("Successfully installed" in line for line in lines) == 2
    assert lines.count("tidied up") == 2
    view = " ".join(workbench.run("job", "view", job.record.job_id).stdout.split())
    assert f"environment {record.environment} with 1 package above those of the cluster" in view
    packages = workbench.run("job", "view", job.record.job_id, "--packages").stdout
    assert packages.splitlines()[2:] == ["tiny==1.0", "# installed by the command", "later==2.0"]
    assert freeze() == before


def test_a_wrong_requirement_fails_the_job_at_once(workbench: Workbench, write_job: WriteJob, tmp_path: Path) -> None:
    template, workspace = write_job(SCRIPT, extra="max_failures: 5\n")
    text = template.read_text().replace("  docker:\n", "  python: {packages: [nonesuch==7]}\n  docker:\n")
    template.write_text(text)

    outcome, job = workbench.submit(template, workspace, *env_options(tmp_path))

    assert outcome.exit_code == 1
    message = str(job.state.message)
    assert "node 0: the packages of job_setting.python cannot be installed: there is no such package" in message
    assert "ERROR: No matching distribution found for nonesuch==7" in message
    assert "Not started again: another attempt would fail in the same way." in message
    assert [attempt.cause for attempt in read_attempts(workbench.root, job.record.job_id)] == ["failure"]
