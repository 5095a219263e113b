"""A command's own Python above the cluster's: what it installs stays with the job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.one_node import open_node
from support.tiny_wheels import make_wheel, offline

from periflow_ray.runtime.environments import job_python
from periflow_ray.runtime.environments.layer import Layer, PythonBelow, find_cluster_python
from periflow_ray.store.root import StorageRoot

pytestmark = pytest.mark.usefixtures("sandboxes")


def freeze() -> str:
    """The cluster's packages, as pip lists them."""
    command = [sys.executable, "-m", "pip", "freeze", "--all"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    directory = tmp_path / "wheels"
    make_wheel(directory, "tiny", "1.0", scripts={"say-tiny": "tiny:say"}, files={"tiny.py": SAYS_WHERE})
    make_wheel(directory, "numpy", "99.0", files={"numpy/__init__.py": "__version__ = '99.0'\n"})
    return directory


SAYS_WHERE = "import os, sys\ndef say(): print('tiny in', os.path.basename(sys.prefix))\n"
VERSION_OF_NUMPY = "python -c 'import numpy; print(\"numpy\", numpy.__version__)'"


def test_what_a_command_installs_stays_with_its_job_and_the_cluster_is_as_it_was(
    root: StorageRoot, wheels: Path
) -> None:
    import numpy

    before = freeze()
    command = f"""
        pip install tiny && say-tiny
        pip install -U numpy && {VERSION_OF_NUMPY}
        python -m pip install --force-reinstall --no-deps numpy
        pip uninstall -y numpy click
        {VERSION_OF_NUMPY}
        pip install --user tiny
        python -m pip uninstall -y tiny
        hash -r
        pip install --user tiny && say-tiny
        head -1 $(which torchrun)
    """
    with open_node(root, command, env_var=offline(wheels)) as node:
        assert node.run() is None
        lines = node.take_lines()
    assert [line for line in lines if line.startswith(("numpy ", "tiny in"))] == [
        "tiny in python",
        "numpy 99.0",
        f"numpy {numpy.__version__}",
        "tiny in python",
    ]
    assert any("Not uninstalling click" in line and "outside environment" in line for line in lines)
    assert lines[-1].endswith("/node-0/python/bin/python")
    assert freeze() == before


def test_a_later_attempt_finds_what_an_earlier_one_installed(root: StorageRoot, wheels: Path) -> None:
    command = "python -c 'import tiny; print(\"there\")' || pip install tiny"
    with open_node(root, command, env_var=offline(wheels)) as node:
        node.run()
        node.run()
        assert node.take_lines()[-1] == "there"


def test_two_jobs_that_install_conflicting_versions_do_not_see_each_other(root: StorageRoot, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "tiny", version)
    says = "python -c 'import tiny; print(tiny.__version__)'"
    with (
        open_node(root, f"pip install -q tiny==1.0; {says}", env_var=offline(wheels)) as one,
        open_node(root, f"pip install -q tiny==2.0; {says}", env_var=offline(wheels)) as other,
    ):
        one.run()
        other.run()
        one.run()
        assert "2.0" not in one.take_lines()
        assert other.take_lines()[-1] == "2.0"


def test_an_environment_that_is_active_where_the_job_was_submitted_is_not_the_commands(
    root: StorageRoot, wheels: Path, tmp_path: Path
) -> None:
    environ = {**os.environ, "VIRTUAL_ENV": "/home-of-it", "CONDA_PREFIX": "/opt/conda", "CONDA_SHLVL": "1"}
    with open_node(root, "env", environ=environ) as node:
        node.run()
        lines = node.take_lines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert variables["VIRTUAL_ENV"].endswith("/node-0/python")
    assert variables["CONDA_PREFIX"] == variables["VIRTUAL_ENV"]
    assert variables["PATH"].startswith(f"{variables['VIRTUAL_ENV']}/bin:")
    assert "CONDA_SHLVL" not in variables


def test_an_environment_that_the_command_activates_finds_the_sdk_and_is_changed_by_pip(
    root: StorageRoot, wheels: Path, tmp_path: Path
) -> None:
    command = f"""
        python -m venv --without-pip {tmp_path}/own && source {tmp_path}/own/bin/activate
        python -c 'import sys, periflow_ray as pf; print(sys.prefix); pf.init(total_train_steps=1); print("sdk")'
    """
    with open_node(root, command, env_var=offline(wheels)) as node:
        assert node.run() is None
        assert node.take_lines()[-2:] == [f"{tmp_path}/own", "sdk"]


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH")
def test_uv_installs_into_the_jobs_own(root: StorageRoot, wheels: Path) -> None:
    with open_node(root, "uv pip install tiny && say-tiny", env_var=offline(wheels)) as node:
        assert node.run() is None
        assert node.take_lines()[-1] == "tiny in python"


def test_scripts_of_the_packages_below_run_with_the_interpreter_of_the_layer(tmp_path: Path) -> None:
    scripts = tmp_path / "cluster" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "plain").write_text(f"#!{scripts}/python3\nprint('{scripts}/python3 ')\n")
    (scripts / "long").write_text(f"#!/bin/sh\n'''exec' '{scripts}/python' \"$0\" \"$@\"\n' '''\nimport sys\n")
    (scripts / "env").write_text("#!/usr/bin/env python\n")
    (scripts / "sh").write_text("#!/bin/sh\n")
    (scripts / "program").write_bytes(b"\x7fELF")
    (scripts / "gone").symlink_to("nowhere")
    below = PythonBelow(sys.executable, "3.11.7", (), (str(scripts),), (str(scripts),))
    layer = Layer(tmp_path / "layer", "3.11")
    layer.write(below)
    assert sorted(path.name for path in layer.bin_dir.iterdir()) == [
        "long",
        "pip",
        "pip3",
        "plain",
        "python",
        "python3",
        "python3.11",
    ]
    assert (layer.bin_dir / "plain").read_text() == f"#!{layer.python}\nprint('{scripts}/python3 ')\n"
    assert (layer.bin_dir / "long").read_text().splitlines()[1] == f"'''exec' '{layer.python}' \"$0\" \"$@\""
    assert os.access(layer.bin_dir / "plain", os.X_OK)


def test_a_layer_above_a_layer_finds_the_packages_of_both(tmp_path: Path) -> None:
    cluster = find_cluster_python()
    lower, upper = (Layer(tmp_path / name, cluster.minor_version) for name in ("lower", "upper"))
    lower.write(cluster)
    (lower.package_dir / "from_lower.py").touch()
    upper.write(lower.as_below(cluster, made_in=str(lower.bin_dir)))
    program = "import sys, click, from_lower; print(sys.prefix)"
    done = subprocess.run([upper.python, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(upper.directory)


def test_a_torchrun_after_an_installation_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    cluster = find_cluster_python()
    layer = Layer(tmp_path / "layer", cluster.minor_version)
    layer.write(cluster)
    program = "from periflow_ray.sdk.shim.periflow_launcher import describe; print(describe()['installed_ns'])"

    def describe() -> str:
        return subprocess.run([layer.python, "-c", program], capture_output=True, text=True, check=True).stdout

    before = describe()
    assert describe() == before
    (layer.package_dir / "tiny-1.0.dist-info").mkdir()
    assert describe() != before


def test_no_job_waits_for_a_storage_that_does_not_take_its_record(
    root: StorageRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_free, written = threading.Event(), []

    def write_late(*record: object) -> None:
        is_free.wait(20)
        written.append(record)

    monkeypatch.setattr(job_python, "write_environment", write_late)
    monkeypatch.setattr(job_python, "_RECORD_TIMEOUT_S", 0.01)
    try:
        with open_node(root, "true") as node:
            assert node.run() is None
            assert written == []
    finally:
        is_free.set()
