"""``cluster wheels``: what it is told, and what it says; the wheels themselves are tested where they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

RunCli = Callable[..., Result]


def test_its_own_wheel_alone_needs_no_index(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = run_cli("cluster", "wheels", "--only-own", "--dest", str(tmp_path / "wheels"))
    assert done.exit_code == 0, done.output
    assert "1 wheel," in done.stdout
    assert len(list((tmp_path / "wheels").glob("periflow_ray-*-py3-none-any.whl"))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--python", "3"], "'3' is no version from 3.10 on. Give one such as 3.12."),
        (["--python", "3.9"], "'3.9' is no version from 3.10 on"),
        (["--machine", "riscv"], "'riscv' is not one of"),
        (["--only-own", "transformers"], "--only-own is for nothing but periflow-ray"),
        (["--only-own", "--dest", "."], "has other files (thesis.tex), and wheels are put into a folder"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.tex").touch()
    done = run_cli("cluster", "wheels", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
