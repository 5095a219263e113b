from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from periflow_ray.credentials import create_credential, list_credentials, read_credential

KEY_FILE = {"type": "service_account", "client_email": "ada@example.com", "private_key": "k3y"}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "credentials.json"
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(path))
    return path


@pytest.fixture
def team_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    create_credential("team-s3", "s3", {"access_key_id": "AKIA0", "secret_access_key": "s3cr3t", "region": "eu-west-1"})


def test_create_asks_for_the_values_and_shows_no_secret(run_cli, path):
    result = run_cli("credential", "create", "team-s3", "--type", "s3", input="AKIA0\ns3cr3t\n\neu-west-1\n\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "access_key_id: AKIA0\nsecret_access_key: \nsession_token (Enter for none): \n"
        "region (Enter for none): eu-west-1\nendpoint_url (Enter for none): \n"
        f"Credential 'team-s3' is kept in {path}.\n"
    )
    assert read_credential("team-s3").values == {
        "access_key_id": "AKIA0",
        "secret_access_key": "s3cr3t",
        "region": "eu-west-1",
    }


def test_create_asks_which_of_several_keys_there_is(run_cli):
    result = run_cli("credential", "create", "az", "--type", "azure-blob", input="sas_token\nacc\n?sv=1\n")
    assert result.exit_code == 0
    assert result.stderr.startswith("What do you have (connection_string, account_key, sas_token): sas_token\n")
    assert read_credential("az").values == {"account_name": "acc", "sas_token": "?sv=1"}


def test_create_asks_for_a_google_key_by_its_file(run_cli, tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(KEY_FILE))
    result = run_cli("credential", "create", "models", "--type", "gcs", input=f"{tmp_path}/key.json\n")
    assert result.exit_code == 0
    assert json.loads(read_credential("models").values["service_account_json"]) == KEY_FILE


def test_create_takes_the_usual_variables_of_this_shell(run_cli, monkeypatch, tmp_path):
    for name in ("AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    (tmp_path / "key.json").write_text(json.dumps(KEY_FILE))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    result = run_cli("credential", "create", "team-s3", "--type", "s3", "--from-env")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        0,
        "Read from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.",
    )
    assert run_cli("credential", "create", "models", "--type", "gcs", "--from-env").exit_code == 0
    assert read_credential("team-s3").values == {
        "access_key_id": "AKIA0",
        "secret_access_key": "s3cr3t",
        "region": "eu-west-1",
    }
    assert json.loads(read_credential("models").values["service_account_json"]) == KEY_FILE


def test_variables_that_are_not_set_are_named(run_cli, monkeypatch):
    for name in ("CONNECTION_STRING", "ACCOUNT_KEY", "KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    result = run_cli("credential", "create", "az", "--type", "azure-blob", "--from-env")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --from-env: set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and "
        "AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_SAS_TOKEN in this shell first, "
        "or leave --from-env out to be asked.\n",
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"access_key_id": "AKIA0", "secret_access_key": "s3=cr3t"}',
        "# keys of the team\n\naccess_key_id=AKIA0\nsecret_access_key = 's3=cr3t'\n",
        'export AWS_ACCESS_KEY_ID=AKIA0\nAWS_SECRET_ACCESS_KEY="s3=cr3t"\n',
    ],
)
@pytest.mark.parametrize("is_piped", [False, True])
def test_create_takes_a_file(run_cli, tmp_path, text, is_piped):
    (tmp_path / "keys").write_text(text)
    source = ["-"] if is_piped else [str(tmp_path / "keys")]
    result = run_cli(
        "credential", "create", "team-s3", "--type", "s3", "--from-file", *source, input=text if is_piped else None
    )
    assert result.exit_code == 0
    assert read_credential("team-s3").values == {"access_key_id": "AKIA0", "secret_access_key": "s3=cr3t"}


def test_a_google_key_file_is_a_credential_as_it_is(run_cli, tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(KEY_FILE))
    result = run_cli("credential", "create", "models", "--type", "gcs", "--from-file", str(tmp_path / "key.json"))
    assert result.exit_code == 0
    assert json.loads(read_credential("models").values["service_account_json"]) == KEY_FILE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{hunter2", "is not valid JSON: "),
        ("hunter2", ":1: not a line of KEY=VALUE (the file may also be a JSON object)."),
        ("", "is empty; it must hold access_key_id and secret_access_key."),
        ("secret_access_key=hunter2", "a credential of type 's3' is made of access_key_id and secret_access_key; "),
        ("secret_key=hunter2", "a credential of type 's3' has no value 'secret_key'. Did you mean "),
        ("\udcff", "cannot be read: it is no text in UTF-8"),
    ],
)
def test_a_file_that_is_none_is_refused_without_repeating_it(run_cli, tmp_path, text, message):
    (tmp_path / "keys").write_bytes(text.encode(errors="surrogateescape"))
    result = run_cli("credential", "create", "team-s3", "--type", "s3", "--from-file", str(tmp_path / "keys"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert "hunter2" not in result.stderr
    assert list_credentials() == []


def test_a_file_that_is_not_there_is_refused(run_cli, tmp_path):
    result = run_cli("credential", "create", "team-s3", "--type", "s3", "--from-file", str(tmp_path / "keys"))
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: --from-file: '{tmp_path}/keys' cannot be read: No such file or directory\n",
    )
    result = run_cli("credential", "create", "team-s3", "--type", "s3", "--from-file", "-", "--from-env")
    assert (result.exit_code, result.stderr) == (2, "Error: --from-env and --from-file exclude each other.\n")


def test_no_option_takes_a_secret(run_cli):
    result = run_cli("credential", "create", "k", "--type", "wandb", "--api-key", "hunter2")
    assert result.exit_code == 2
    assert "--api-key" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_name_that_is_taken_is_refused_before_anything_is_asked(run_cli, team_s3):
    result = run_cli("credential", "create", "team-s3", "--type", "wandb")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: credential 'team-s3' already exists. Give it other values: periflow-ray credential edit team-s3\n",
    )


def test_the_list_shows_what_is_no_secret(run_cli, team_s3):
    assert (
        run_cli("credential", "list").stdout
        == """\
┏━━━━━━━━━┳━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━┓
┃ Name    ┃ Type ┃ Values                                ┃ Created             ┃
┡━━━━━━━━━╇━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━┩
│ team-s3 │ s3   │ access_key_id=AKIA0, region=eu-west-1 │ 2023-11-14 22:13:20 │
└─────────┴──────┴───────────────────────────────────────┴─────────────────────┘
"""
    )


def test_view_shows_which_values_there_are(run_cli, team_s3):
    assert (
        run_cli("credential", "view", "team-s3").stdout
        == """\
╭─────────────── Credential ───────────────╮
│  Name               team-s3              │
│  Type               s3                   │
│  Created            2023-11-14 22:13:20  │
│  access_key_id      AKIA0                │
│  secret_access_key  (kept, not shown)    │
│  region             eu-west-1            │
╰──────────────────────────────────────────╯
"""
    )


def test_programs_get_no_secret_either(run_cli, team_s3):
    expected = {
        "name": "team-s3",
        "type": "s3",
        "created": "2023-11-14T22:13:20.000+00:00",
        "values": {"access_key_id": "AKIA0", "region": "eu-west-1"},
        "hidden_values": ["secret_access_key"],
    }
    assert json.loads(run_cli("credential", "view", "team-s3", "-o", "json").stdout) == expected
    assert json.loads(run_cli("credential", "list", "-o", "json").stdout) == [expected]


def test_edit_replaces_all_values(run_cli, team_s3):
    result = run_cli("credential", "edit", "team-s3", input="AKIA1\nn3w\n\n\n\n")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "Credential 'team-s3' has its new values.")
    assert read_credential("team-s3").values == {"access_key_id": "AKIA1", "secret_access_key": "n3w"}


def test_delete_asks(run_cli, team_s3):
    result = run_cli("credential", "delete", "team-s3", input="n\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("Delete credential 'team-s3'? Jobs and roots that name it fail then. [y/N]: ")
    assert run_cli("credential", "delete", "team-s3", "-y").exit_code == 0
    assert list_credentials() == []


@pytest.mark.parametrize("command", ["view", "edit", "delete"])
def test_an_unknown_credential_is_an_error(run_cli, team_s3, command):
    result = run_cli("credential", command, "team-s4")
    assert result.exit_code == 1
    assert "Did you mean 'team-s3'? Known there: team-s3." in result.stderr


def test_a_command_names_the_credential_of_its_storage_root(run_cli, team_s3, monkeypatch):
    for arguments in (["--storage-credential", "team"], []):
        monkeypatch.setenv("PERIFLOW_STORAGE_CREDENTIAL", "team")
        result = run_cli("job", "list", "--storage", "s3://bucket/prefix", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: storage root 's3://bucket/prefix': credential 'team' does not exist")
        assert "Known there: team-s3." in result.stderr


def test_no_traceback_shows_a_secret_when_questions_end_early(path):
    command = [sys.executable, "-m", "periflow_ray.cli.main", "credential", "create", "k", "--type", "wandb"]
    done = subprocess.run(
        command, input="", capture_output=True, text=True, check=False, start_new_session=True, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("Error: the input ended before every question was answered.\n")
    assert not path.exists()


def test_from_a_pipe_python_does_not_warn_that_it_cannot_hide_what_is_typed(path):
    argv = [sys.executable, "-m", "periflow_ray.cli.main", "credential", "create", "team-wandb", "--type", "wandb"]
    done = subprocess.run(argv, input="s3cr3t\n", capture_output=True, text=True, check=True, timeout=60)
    assert "arning" not in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    assert read_credential("team-wandb").values == {"api_key": "s3cr3t"}
