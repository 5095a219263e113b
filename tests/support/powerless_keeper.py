"""A keeper whose signals are refused, as those to a process of another user are."""

from __future__ import annotations

from pathlib import Path

import pytest

from periflow_ray.processes import keeper


def use_powerless_keeper(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command that starts from now on have one."""
    script = directory / "powerless_keeper.py"
    script.write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('keeper', {keeper.__file__!r})\n"
        "keeper = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(keeper)\n"
        "keeper._send = lambda pid, number: None\n"
        "keeper.KILL_TIMEOUT_S = 0.1\n"
        "keeper.main(int(sys.argv[1]), float(sys.argv[2]), [], sys.argv[4:])\n"
    )
    monkeypatch.setattr(keeper, "__file__", str(script))
