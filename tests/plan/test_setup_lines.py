"""Which setups only install, and what of them runs again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from periflow_ray.plan.setup_lines import InstallSetup, find_install_setup


@pytest.mark.parametrize(
    "setup",
    [
        "pip install -r requirements.txt",
        "python -m pip install 'a[b]>=1' -q  # for c",
        "uv pip install a",
        "conda install -y a",
        "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y a; sudo apt-get -y install b",
        "pip install \\\n  a \\\n  b",
    ],
)
def test_a_setup_that_only_installs_is_known(setup: str) -> None:
    assert find_install_setup(setup, "run") is not None


@pytest.mark.parametrize(
    "setup",
    [
        "cd x",
        "mkdir x && pip install a",
        "pip install a | tee log",
        "pip install a > log",
        "pip install numpy>=1",
        "pip install a || true",
        "pip install a &",
        "pip install $(cat names)",
        'pip install "$(cat names)"',
        "pip install `cat names`",
        "pip install dist/*.whl",
        "pip uninstall -y a",
        "pip download a",
        "source venv/bin/activate; pip install a",
        "if true; then pip install a; fi",
        "(pip install a)",
        "cd $HOME && pip install a",
        "cd; pip install -r a.txt",
        "pip install 'a",
        "bash install.sh",
        "pip install \"it's $(cat names) it's\"",
        "conda install -y --file packages.txt",
        "pip install a  # no continuation \\\npip install b",
        "pip install a\\;b",
    ],
)
def test_every_other_setup_runs_each_time(setup: str) -> None:
    assert find_install_setup(setup, "run") is None


def test_what_a_run_needs_of_a_setup_stays() -> None:
    setup = "cd app && pip install -r requirements.txt -c ../limits.txt\nexport A=1\npip install --requirement=b.txt"
    assert find_install_setup(setup, "python main.py") == InstallSetup(
        lines=(
            "cd app && pip install -r requirements.txt -c ../limits.txt",
            "export A=1",
            "pip install --requirement=b.txt",
        ),
        kept=("cd app", "export A=1"),
        requirement_files=("app/requirements.txt", "app/../limits.txt", "app/b.txt"),
        run="python main.py",
    )


@pytest.mark.parametrize(
    "line",
    [
        "pip install git+https://a.example/b#subdirectory=c",
        "export COLOR='#fff' && pip install a",
        'export A="two  blanks; and && more" B=a#b && pip install a',
        "conda install -y -c conda-forge a",
    ],
)
def test_a_setup_is_run_as_it_is_written(line: str) -> None:
    setup = find_install_setup(line, "run")
    assert setup is not None
    assert (setup.lines, setup.requirement_files) == ((line,), ())


def test_only_a_setup_of_which_each_line_succeeded_leaves_its_mark(tmp_path: Path) -> None:
    def run(*lines: str) -> tuple[str, bool]:
        setup = InstallSetup(lines=lines, kept=(), requirement_files=(), run="echo runs")
        mark = tmp_path / "mark"
        mark.unlink(missing_ok=True)
        text = setup.build_text(str(mark))
        return subprocess.run(["bash", "-c", text], capture_output=True, text=True).stdout.strip(), mark.exists()

    assert run("true", "true && true") == ("runs", True)
    assert run("false", "true") == ("runs", False)
    assert run("false && true", "true") == ("runs", False)
    assert run("true", "false") == ("", False)
