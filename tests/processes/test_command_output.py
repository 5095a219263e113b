from __future__ import annotations

import sys

import pytest

from periflow_ray.processes import CommandResult
from periflow_ray.secret_mask import SecretMask


@pytest.mark.parametrize(
    ("script", "exit_code", "signal_number"),
    [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("exit 255", 255, None),
        ("no-such-program", 127, None),
        ("kill -KILL $$", None, 9),
        ("kill -SEGV $$", None, 11),
        ("kill -TERM $$", None, 15),
        ("bash -c 'kill -KILL $$'; exit $?", 137, None),
    ],
)
def test_the_result_says_how_the_command_ended(start, script, exit_code, signal_number):
    result = start(script)[0].wait()
    assert result == CommandResult(exit_code, signal_number, result.peak_memory_bytes)
    assert result.is_success == (exit_code == 0)


def test_output_and_errors_arrive_in_order(start):
    command, lines = start("echo out; echo err >&2; echo out again")
    assert command.wait().is_success
    assert lines == ["out", "err", "out again"]


def test_output_is_complete_to_a_last_line_without_newline(start):
    command, lines = start("for i in $(seq 5000); do echo line $i; done; printf 'the end'")
    assert command.wait().is_success
    assert lines == [*(f"line {number}" for number in range(1, 5001)), "the end"]


def test_output_is_complete_when_the_command_is_killed(start):
    command, lines = start("for i in $(seq 2000); do echo line $i; done; kill -KILL $$")
    assert command.wait().signal == 9
    assert lines == [f"line {number}" for number in range(1, 2001)]


def test_a_very_long_line_comes_in_pieces_and_whole(start):
    command, lines = start(f"{sys.executable} -c \"print('x' * 1_000_000); print('next')\"")
    assert command.wait().is_success
    assert "".join(lines) == "x" * 1_000_000 + "next"
    assert lines[-1] == "next"
    assert max(map(len, lines)) <= 65_536


def test_no_piece_of_a_very_long_line_ends_within_a_secret(start):
    secret = "correct-horse-battery"
    command, lines = start(f"printf '%065530d' 0; sleep 0.1; printf '{secret}%065530d' 0", mask=SecretMask([secret]))
    assert command.wait().is_success
    # As the log masks them.
    assert "".join(map(SecretMask([secret]).apply, lines)) == "0" * 65_530 + "***" + "0" * 65_530


def test_a_progress_bar_leaves_what_was_visible_last(start):
    command, lines = start(r"printf ' 10%%\r 50%%\r100%%\n'; printf 'dos\r\n'; printf 'a\rb\r'")
    assert command.wait().is_success
    assert lines == ["100%", "dos", "b"]


def test_empty_lines_and_bytes_that_are_no_text_are_kept(start):
    command, lines = start(r"printf 'one\n\n  two  \n\xff\xfe\n학습\n'")
    assert command.wait().is_success
    assert lines == ["one", "", "  two  ", "��", "학습"]


def test_the_command_reads_an_empty_standard_input_and_starts_in_its_directory(start, tmp_path):
    command, lines = start("cat; pwd")
    assert command.wait().is_success
    assert lines == [str(tmp_path)]


def test_the_command_sees_the_given_environment_only(start, marked, monkeypatch):
    monkeypatch.setenv("VISIBLE", "given")
    command, lines = start("echo $VISIBLE")
    monkeypatch.setenv("VISIBLE", "changed")
    assert command.wait().is_success
    assert lines == ["given"]


def test_the_peak_memory_of_the_largest_process_is_reported(start):
    small = start("true")[0].wait().peak_memory_bytes
    program = f"{sys.executable} -c \"block = b'x' * 200_000_000\""
    large = start(f"bash -c '{program.replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))}; true'; true")[0].wait()
    assert large.exit_code == 0
    assert 1_000_000 < small < 100_000_000
    assert 200_000_000 < large.peak_memory_bytes < 400_000_000
