from __future__ import annotations

from pathlib import Path

import pytest

from periflow_ray.errors import UsageError
from periflow_ray.submit.environment import collect_env, collect_secrets

ENVIRON = {"HOME": "/home-of-ada", "TOKEN": "t0k3n", "EMPTY": ""}


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.env"
    path.write_text(
        "# learning\n"
        "\n"
        "LR=0.1\n"
        "  export EPOCHS=3  \n"
        "TOKEN\n"
        'QUOTED="two words"\n'
        "SINGLE='it is'\n"
        "URL=s3://bucket/a=b\n"
        "NOTHING=\n"
    )
    return path


def test_values_come_from_the_option_or_from_here():
    assert collect_env(["LR=0.1", "TOKEN", "EMPTY", "A=", "B=x=y", "Q='kept'"], [], ENVIRON) == {
        "LR": "0.1",
        "TOKEN": "t0k3n",
        "EMPTY": "",
        "A": "",
        "B": "x=y",
        "Q": "'kept'",
    }


def test_a_file_has_one_variable_a_line(env_file):
    assert collect_env([], [env_file], ENVIRON) == {
        "LR": "0.1",
        "EPOCHS": "3",
        "TOKEN": "t0k3n",
        "QUOTED": "two words",
        "SINGLE": "it is",
        "URL": "s3://bucket/a=b",
        "NOTHING": "",
    }


def test_later_files_win_over_earlier_ones_and_options_over_files(env_file, tmp_path):
    other = tmp_path / "other.env"
    other.write_text("LR=0.2\nEPOCHS=4\n")
    merged = collect_env(["EPOCHS=5", "EPOCHS=6"], [env_file, other], ENVIRON)
    assert (merged["LR"], merged["EPOCHS"], merged["SINGLE"]) == ("0.2", "6", "it is")


@pytest.mark.parametrize("name", ["", "1ST", "WITH SPACE", "DASH-ED", "É"])
def test_a_name_that_no_shell_takes_is_refused(name):
    with pytest.raises(UsageError) as caught:
        collect_env([f"{name}=1"], [], ENVIRON)
    assert str(caught.value) == (
        f"--env: '{name}' is not a variable name (letters, digits and '_', not first a digit)."
    )


def test_a_variable_that_is_not_set_here_is_refused_where_it_is_named(tmp_path):
    path = tmp_path / "job.env"
    path.write_text("LR=1\n\nMISSING\n")
    for assignments, files, where in ((["MISSING"], [], "--env"), ([], [path], f"{path}:3")):
        with pytest.raises(UsageError) as caught:
            collect_env(assignments, files, ENVIRON)
        assert str(caught.value) == (
            f"{where}: the variable 'MISSING' is not set here. Set it, or give a value: MISSING=VALUE"
        )


def test_a_secret_that_is_not_set_here_is_refused():
    with pytest.raises(UsageError) as caught:
        collect_secrets(["TOKEN", "MISSING"], ENVIRON)
    assert str(caught.value) == ("--secret: the variable 'MISSING' is not set here. Set it first: export MISSING=...")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(UsageError) as caught:
            collect_env([], [path], ENVIRON)
        assert str(caught.value).startswith(f"--env-file '{path}' cannot be read: ")


def test_secrets_are_taken_from_here():
    assert collect_secrets(["TOKEN", "EMPTY"], ENVIRON) == {"TOKEN": "t0k3n", "EMPTY": ""}


@pytest.mark.parametrize("value", ["abc", " 1234"[:4], "a\nb\nc\n"])
def test_a_secret_that_cannot_be_hidden_is_refused_without_repeating_it(value):
    with pytest.raises(UsageError) as caught:
        collect_secrets(["PIN"], {"PIN": value})
    assert str(caught.value) == (
        "--secret: the value of 'PIN' has no line of 4 characters. Anything shorter is a part of so many words that "
        "hiding it would hide half of the log. Use a longer one, or --env PIN if it may be read."
    )


def test_a_secret_on_the_command_line_is_refused_without_repeating_it():
    with pytest.raises(UsageError) as caught:
        collect_secrets(["TOKEN=hunter2=x"], ENVIRON)
    assert str(caught.value) == (
        "--secret takes a name, not a value: export TOKEN=... first, then --secret TOKEN. Everybody on this machine "
        "can read a value on the command line."
    )


def test_a_value_that_no_variable_can_have_is_refused_without_repeating_it(tmp_path):
    (tmp_path / "job.env").write_text("A='1\n2'\nB='hunter2\0'\n")
    with pytest.raises(UsageError) as caught:
        collect_env([], [tmp_path / "job.env"], ENVIRON)
    assert str(caught.value) == (
        f"{tmp_path}/job.env:3: the value of 'B' has a NUL character, which no variable can have."
    )
    for collect in (
        lambda long: collect_env([f"A={long}"], [], ENVIRON),
        lambda long: collect_secrets(["A"], {"A": long}),
    ):
        collect("학습" * 20_000)
        with pytest.raises(UsageError) as caught:
            collect("학습" * 20_001)
        assert str(caught.value).endswith(
            ": the value of 'A' has 120,006 bytes; a variable may have 120,000. Put the text into a file of the "
            "workspace."
        )
