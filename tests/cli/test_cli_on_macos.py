"""The command line where the system lacks what only Linux has: all commands but those that run jobs on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.sample_checkpoints import ID, write_sample_checkpoints
from support.without_linux import WITHOUT_LINUX

RUN_COMMANDS = """
import json, sys, traceback
from click.testing import CliRunner
from periflow_ray.cli.main import cli

outcomes = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(cli, arguments, prog_name="periflow-ray")
    text = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        text += "".join(traceback.format_exception(result.exception))
    outcomes.append([result.exit_code, text])
print(json.dumps(outcomes))
"""

TEMPLATE = """\
vm: local
num_devices: 2
job_setting: {type: custom, docker: {command: echo "$FOO"}}
"""


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    (tmp_path / "pf-template.yml").write_text(TEMPLATE)
    (tmp_path / "data").mkdir()
    # Large enough for the kernel to be asked whether it copies.
    (tmp_path / "data" / "rows.csv").write_text("a,b\n" + "1,2\n" * 500_000)
    lines = f"""
        --version
        job list
        job list -o json
        job view 1
        job log 1
        job events 1
        job metrics list 1
        job schema
        checkpoint list
        checkpoint download {ID} -d {tmp_path}/downloaded
        checkpoint verify {ID}
        datastore list
        datastore upload -n rows -p {tmp_path}/data
        checkpoint upload -n mine -p {tmp_path}/data
        datastore edit rows -n lines
        datastore view lines
        datastore delete lines --yes
        experiment list
        vm list
        credential list
        sweep list
        cluster list
        cluster render --vm aws-16gb-t4-1g-us-east-1
        completion bash
        submit --local --dry-run -f {tmp_path}/pf-template.yml -d {tmp_path}/data
        job delete 2 --yes
    """
    return [line.split() for line in lines.strip().splitlines()]


def test_the_commands_work_without_linux(sample_root, commands, tmp_path):
    write_sample_checkpoints(sample_root, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LINUX + RUN_COMMANDS, json.dumps(commands)],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    outcomes = dict(zip(map(" ".join, commands), json.loads(done.stdout), strict=True))
    assert {command: text for command, (exit_code, text) in outcomes.items() if exit_code != 0} == {}
