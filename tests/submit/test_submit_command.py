"""The submit command up to the moment at which it would start or call a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.job_server import JobServer

from periflow_ray.cli.main import cli
from periflow_ray.cli.options import parse_bandwidth
from periflow_ray.credentials import create_credential
from periflow_ray.errors import UsageError
from periflow_ray.jobs import JobState, write_state
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.store.root import StorageRoot

TEMPLATE = """\
vm: local
num_devices: 1
experiment: vision
job_setting:
  type: custom
  docker:
    command: python main.py
"""


@pytest.fixture(autouse=True)
def _own_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))


def submit(template: Path | str, *arguments: str) -> Result:
    text = template if isinstance(template, str) else template.read_text()
    return CliRunner().invoke(cli, ["submit", "-f", "-", *arguments], prog_name="periflow-ray", input=text)


def dry_run(*arguments: str) -> dict[str, Any]:
    result = submit(TEMPLATE, "--dry-run", "-o", "json", *arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("500kB", 500_000),
        ("50MB", 50_000_000),
        ("50MB/s", 50_000_000),
        ("1.5 GB/s", 1_500_000_000),
        ("64KiB", 65_536),
        ("50MiB", 52_428_800),
        ("1GiB/s", 1_073_741_824),
        ("0.001kB", 1),
    ],
)
def test_a_bandwidth_is_a_size_per_second(text: str, bytes_per_s: int):
    assert parse_bandwidth(text) == bytes_per_s
    assert dry_run("--upload-bandwidth", text)["upload_bandwidth_bytes_per_s"] == bytes_per_s


@pytest.mark.parametrize("text", ["", "50", "50Mb/s", "50mb", "50 MB/h", "0MB", "-1MB", "0.0001kB", "MB", "50TBs"])
def test_anything_else_is_no_bandwidth(text: str):
    with pytest.raises(UsageError):
        parse_bandwidth(text)
    result = submit(TEMPLATE, "--dry-run", f"--upload-bandwidth={text}")
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: --upload-bandwidth: {text!r} is not a number of bytes per second above 0. Give a number and a unit "
        "(kB, MB, GB, KiB, MiB, GiB), for example 50MB or 50MB/s.\n",
    )


def test_the_plan_has_the_name_of_the_credential_and_none_of_its_values():
    create_credential("team-s3", "s3", {"access_key_id": "AKIA0", "secret_access_key": "s3cr3t"})
    options = ("--storage", "s3://bucket/prefix", "--storage-credential", "team-s3")
    document = dry_run(*options)
    assert (document["storage_uri"], document["storage_credential"]) == ("s3://bucket/prefix", "team-s3")
    assert not any(value in json.dumps(document) for value in ("AKIA0", "s3cr3t"))
    assert "s3://bucket/prefix (credential 'team-s3')" in submit(TEMPLATE, "--dry-run", *options).stdout
    assert dry_run()["storage_credential"] is None


def test_a_root_that_cannot_be_written_is_told_before_anything_is_created(tmp_path: Path, server: JobServer):
    (tmp_path / "file").write_text("")
    result = submit(
        TEMPLATE, "--address", server.address, "--storage", str(tmp_path / "file" / "storage"), "-d", str(tmp_path)
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: storage root '{tmp_path}/file/storage' is not writable: ")
    assert "Not a directory" in result.stderr
    assert server.requests == []


def test_notes_say_which_credentials_of_the_template_are_not_there(tmp_path: Path, server: JobServer):
    create_credential("registry", "docker", {"username": "ada", "password": "p"})
    create_credential("chat", "wandb", {"api_key": "k"})
    template = TEMPLATE + (
        "    image: private/image\n"
        "    credential_id: registry\n"
        "plugin:\n"
        "  slack: {channel: training, credential_id: chat}\n"
        "  webhook: {credential_id: chat}\n"
        "  wandb: {credential_id: nowhere}\n"
    )
    options = ("--address", server.address, "--storage", str(tmp_path / "storage"), "--no-follow", "-y")
    result = submit(template, *options)
    assert (result.exit_code, result.stdout) == (0, "Job (1) started successfully.\n")
    assert [line for line in result.stderr.splitlines() if "credential" in line] == [
        "Note: plugin.slack.credential_id names 'chat', and that credential is of type wandb, not slack.",
        "Note: plugin.webhook.credential_id names 'chat', and that credential is of type wandb, not webhook.",
        "Note: plugin.wandb.credential_id names 'nowhere', and there is no such credential on this machine. "
        "Create it: periflow-ray credential create nowhere --type wandb",
    ]


def test_a_cluster_elsewhere_gets_no_cloud_variables_of_this_shell(
    tmp_path: Path, server: JobServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    assert (
        submit(
            TEMPLATE, "--address", server.address, "--storage", str(tmp_path / "storage"), "--no-follow", "-y"
        ).exit_code
        == 0
    )
    bodies = [body for method, _, body in server.requests if method == "POST"]
    assert [sorted(body) for body in bodies] == [["entrypoint", "submission_id"]]


def test_what_of_a_workspace_is_not_sent_is_told(tmp_path: Path, server: JobServer):
    workspace = tmp_path / "cifar"
    (workspace / "data").mkdir(parents=True)
    for name in ("main.py", ".env", *(f"run-{number}.log" for number in range(5))):
        (workspace / name).touch()
    (workspace / ".gitignore").write_text("*.log\n/data/\n")
    (workspace / ".pfignore").write_text(".*\n")
    options = ("--address", server.address, "--storage", str(tmp_path / "storage"), "--no-follow", "-y")

    def told() -> list[str]:
        result = submit(TEMPLATE, *options, "-d", str(workspace))
        assert result.exit_code == 0, result.stderr
        return [line for line in result.stderr.splitlines() if "eft out" in line or "link" in line or "git " in line]

    everything = "Left out by .gitignore and .pfignore: .env, .gitignore, .pfignore, data/, run-0.log and 4 more."
    assert told() == [everything]
    (workspace / ".git").write_text("gitdir: nowhere")
    assert told()[0] == everything
    assert told()[1].startswith("Files that git tracks may be among them, because git does not answer: fatal: ")
    (workspace / ".git").unlink()
    (workspace / "shared").symlink_to("/usr/share")
    assert told() == [
        everything,
        f"Left out: '{workspace}/shared' is a link to '/usr/share', which is not in it.",
        "To have what a link leads to: copy it into the folder, or make it a dataset.",
    ]


WITH_INPUTS = TEMPLATE + "data:\n  name: my-cifar\n  mount_path: /data\n"


@pytest.mark.parametrize(
    ("template", "arguments", "exit_code", "message"),
    [
        (TEMPLATE, ["-d", "no-such-directory"], 2, "workspace 'no-such-directory' does not exist"),
        (WITH_INPUTS, [], 1, "dataset 'my-cifar' does not exist in storage root"),
        (TEMPLATE + "checkpoint:\n  input:\n    id: 7/step-1\n    mount_path: /in\n", [], 1, "7/step-1"),
    ],
)
def test_a_dry_run_misses_what_the_job_would_miss(
    tmp_path: Path, template: str, arguments: list[str], exit_code: int, message: str
):
    result = submit(template, "--dry-run", "--storage", str(tmp_path / "storage"), *arguments)

    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr
    assert not (tmp_path / "storage").exists()


def test_a_dry_run_shows_the_size_of_the_workspace_and_no_line_ends_in_blanks(tmp_path: Path):
    workspace = tmp_path / "digits"
    workspace.mkdir()
    (workspace / "main.py").write_bytes(b"x" * 1500)
    (workspace / "notes.txt").write_bytes(b"x" * 500)
    elastic = TEMPLATE.replace("num_devices: 1", "num_devices: 4") + "elastic:\n  min_devices: 2\n"

    shown = submit(elastic, "--dry-run", "--local", "-d", str(workspace)).stdout

    assert f"2 files, 2.0 kB, from {workspace}" in shown
    assert "goes on with at least 2 devices while machines are missing" in shown
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []
    assert dry_run("-d", str(workspace))["workspace"] == {"num_files": 2, "size_bytes": 2000}


def test_elsewhere_this_machines_cpus_decide_nothing(monkeypatch: pytest.MonkeyPatch):
    plans = []
    for num_cpus in (1, 64):
        monkeypatch.setattr("os.cpu_count", lambda num_cpus=num_cpus: num_cpus)
        plans.append(dry_run("--address", "http://127.0.0.1:1", "--num-devices", "4"))

    assert plans[0]["cpus_per_device"] == plans[1]["cpus_per_device"] == 1


@pytest.mark.parametrize(("arguments", "status"), [(["--no-follow"], "waiting"), ([], "failed")])
def test_programs_get_the_job_and_nothing_else_on_standard_output(
    tmp_path: Path, server: JobServer, arguments: list[str], status: str
):
    root = StorageRoot(str(tmp_path / "storage"))

    def run_job() -> None:
        writer = LogWriter(root, 1, 0)
        writer.write("a line of the script")
        writer.flush()
        write_state(root, 1, JobState("failed", message="exit code 3"))

    if not arguments:
        server.on_submit = run_job
    options = ["--address", server.address, "--storage", root.uri, "-o", "json", "--yes"]
    result = submit(TEMPLATE, *options, *arguments)

    document = json.loads(result.stdout)
    assert (document["number"], document["status"]) == (1, status)
    assert "Job (1) started successfully." in result.stderr
    assert ("a line of the script" in result.stderr) == (status == "failed")
    assert result.exit_code == (1 if status == "failed" else 0)
