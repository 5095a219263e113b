"""The environments of ``job_setting.python``: made once per node, kept, and removed when there is no room.

Long because every way in which making one may fail is tried here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.one_node import open_node
from support.tiny_wheels import make_wheel, offline

from periflow_ray.errors import HopelessError, JobFailedError
from periflow_ray.jobs.environments import read_environments
from periflow_ray.runtime.environments import python_environment
from periflow_ray.runtime.environments.install import Installer
from periflow_ray.runtime.environments.layer import find_cluster_python
from periflow_ray.runtime.environments.python_environment import OpenEnvironment, open_environment
from periflow_ray.runtime.environments.running import Running
from periflow_ray.spec.python import PythonSpec
from periflow_ray.store.datasets.cache import DatasetCache
from periflow_ray.store.root import StorageRoot


@pytest.fixture(autouse=True)
def environments(sandboxes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Environments of the test's own."""
    monkeypatch.setenv("PERIFLOW_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    directory = tmp_path / "wheels"
    for version in ("1.0", "2.0"):
        make_wheel(directory, "tiny", version)
    return directory


class Node:
    """Opens environments as a job on this node does."""

    def __init__(self, tmp_path: Path, wheels: Path) -> None:
        self.workspace = tmp_path / "work"
        self.workspace.mkdir(exist_ok=True)
        self.cache = DatasetCache(tmp_path / "environments")
        self.variables = {**os.environ, **offline(wheels)}
        self.lines: list[str] = []
        self.told: list[str] = []

    def open(self, spec: PythonSpec, cache: DatasetCache | None = None, **variables: str) -> OpenEnvironment:
        """The environment, and what is told of it."""
        installer = Installer({**self.variables, **variables}, self.workspace, self.lines.append)
        return open_environment(spec, self.workspace, installer, tell=self.told.append, cache=cache or self.cache)


@pytest.fixture
def node(tmp_path: Path, wheels: Path) -> Node:
    return Node(tmp_path, wheels)


def test_the_second_job_with_the_same_requirements_installs_nothing(node: Node) -> None:
    (node.workspace / "requirements.txt").write_text("-r more.txt  # and no others\n")
    (node.workspace / "more.txt").write_text("tiny==1.0\n")
    with contextlib.closing(node.open(PythonSpec(requirements="requirements.txt"))) as first:
        assert first.packages == ("tiny==1.0",)
    with contextlib.closing(node.open(PythonSpec(requirements="requirements.txt"))) as second:
        assert second.key == first.key
    assert [text.split(" (")[0] for text in node.told] == ["installs 1 package for Python " + second.below.version]
    # Of what is included, too.
    (node.workspace / "more.txt").write_text("tiny==2.0\n")
    with contextlib.closing(node.open(PythonSpec(requirements="requirements.txt"))) as other:
        assert other.key != first.key
        assert other.packages == ("tiny==2.0",)


def test_pips_own_settings_lead_no_package_past_the_environment(node: Node, tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[install]\nuser = true\n")
    variables = {"PIP_CONFIG_FILE": str(settings), "HOME": str(tmp_path / "home")}
    with contextlib.closing(node.open(PythonSpec(packages=("tiny==1.0",)), **variables)) as environment:
        assert environment.packages == ("tiny==1.0",)
    assert list((tmp_path / "home").rglob("tiny*")) == []


def test_a_cluster_without_pip_is_told_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = dataclasses.replace(find_cluster_python(), package_dirs=())
    monkeypatch.setattr(python_environment, "find_cluster_python", lambda: cluster)
    with pytest.raises(HopelessError, match="cannot be installed: the Python that they are for has no pip"):
        node.open(PythonSpec(packages=("tiny",)))


def test_two_jobs_at_once_make_one_environment(node: Node) -> None:
    opened: list[OpenEnvironment] = []
    threads = [threading.Thread(target=lambda: opened.append(node.open(PythonSpec(packages=("tiny",))))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({environment.key for environment in opened}) == 1
    assert sum("Successfully installed" in line for line in node.lines) == 1
    assert len(opened) == 2
    for environment in opened:
        environment.close()


def test_two_jobs_with_conflicting_requirements_run_at_once(root: StorageRoot, wheels: Path) -> None:
    says = "python -c 'import tiny; print(tiny.__version__)'"

    def run(version: str) -> None:
        python = {"packages": [f"tiny=={version}"]}
        with open_node(root, says, python=python, env_var=offline(wheels)) as node:
            assert node.run() is None
            assert node.take_lines()[-1] == version

    threads = [threading.Thread(target=run, args=(version,)) for version in ("1.0", "2.0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_job_has_its_record_of_what_it_ran_with(root: StorageRoot, wheels: Path) -> None:
    make_wheel(wheels, "later", "3.0")
    command = "pip install later"
    with open_node(root, command, python={"packages": ["tiny==1.0"]}, env_var=offline(wheels)) as node:
        assert node.run() is None
        (record,) = read_environments(root, node.job_id)
    assert list(record.packages) == ["tiny==1.0"]
    assert list(record.installed) == ["later==3.0"]
    assert record.version == ".".join(map(str, sys.version_info[:3]))
    assert record.environment is not None
    assert (
        "tiny==1.0"
        not in subprocess.run(
            [sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )


def test_what_a_command_installs_does_not_reach_the_environment_that_others_use(
    root: StorageRoot, wheels: Path
) -> None:
    says = "python -c 'import tiny; print(tiny.__version__)'"
    python = {"packages": ["tiny==1.0"]}
    with open_node(root, f"pip install tiny==2.0 && {says}", python=python, env_var=offline(wheels)) as node:
        assert node.run() is None
        assert node.take_lines()[-1] == "2.0"
    with open_node(root, says, python=python, env_var=offline(wheels)) as node:
        assert node.run() is None
        assert node.take_lines() == ["1.0"]


def test_requirements_that_name_another_torch_get_it_with_its_torchrun(root: StorageRoot, wheels: Path) -> None:
    make_wheel(
        wheels,
        "torch",
        "99.0",
        scripts={"torchrun": "torch:main"},
        files={"torch/__init__.py": "def main(): print('torchrun of 99.0')\n"},
    )
    python = {"packages": ["torch==99.0"]}
    with open_node(root, "torchrun", python=python, env_var=offline(wheels)) as node:
        assert node.run() is None
        assert node.take_lines()[-1] == "torchrun of 99.0"


def test_without_system_packages_nothing_of_the_cluster_is_found(root: StorageRoot, wheels: Path) -> None:
    command = "python -c 'import tiny'; python -c 'import torch'; which torchrun; pip install -q tiny==2.0 && echo pip"
    python = {"packages": ["tiny==1.0"], "system_packages": False}
    with open_node(root, command, python=python, env_var=offline(wheels)) as node:
        assert node.run() is None
        lines = node.take_lines()
    assert lines[-2:] == ["ModuleNotFoundError: No module named 'torch'", "pip"]


def test_an_installation_that_was_killed_is_taken_for_nothing(node: Node, tmp_path: Path, wheels: Path) -> None:
    program = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
from pathlib import Path
from test_python_environment import Node
from periflow_ray.runtime.environments.install import Installer
from periflow_ray.spec.python import PythonSpec
def hang(*args, **kwargs):
    (args[1].package_dir / "half.py").touch()
    print("hangs", flush=True)
    sys.stdin.read()
Installer.install = hang
Node(Path({str(tmp_path)!r}), Path({str(wheels)!r})).open(PythonSpec(packages=("tiny",)))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hangs\n"
        (left,) = (tmp_path / "environments" / "partial").glob("*/files/lib/*/site-packages/half.py")
        # Another job, with other requirements, while it runs.
        node.open(PythonSpec(packages=("tiny==1.0",))).close()
        assert left.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    node.open(PythonSpec(packages=("tiny==2.0",))).close()
    assert not left.exists()
    with contextlib.closing(node.open(PythonSpec(packages=("tiny",)))) as environment:
        assert environment.packages == ("tiny==2.0",)
        assert not list(Path(environment.below.package_dirs[0]).glob("half.py"))


def test_an_index_that_cannot_be_reached_is_told_with_the_last_words_of_pip(node: Node) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"http://127.0.0.1:{closed.getsockname()[1]}/simple"}
        # No proxy may answer in its place.
        settings = {"PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "*", "no_proxy": "*"}
        with pytest.raises(HopelessError, match="the package index cannot be reached from this node") as caught:
            node.open(PythonSpec(packages=("nonesuch",)), **settings, **index)
    assert "No matching distribution found for nonesuch" in caught.value.last_lines[-1]
    assert list((node.cache.directory / "entries").iterdir()) == []


@pytest.mark.parametrize(
    ("packages", "reason"),
    [
        (("tiny==7",), "there is no such package or version for this Python"),
        (("tiny==1.0", "tiny==2.0"), "the requirements contradict each other"),
    ],
)
def test_requirements_that_cannot_be_met_are_the_users_to_correct(
    node: Node, packages: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(HopelessError, match=f"the packages of job_setting.python cannot be installed: {reason}"):
        node.open(PythonSpec(packages=packages))


def test_what_was_not_used_for_longest_goes_where_there_is_no_room_and_what_is_in_use_stays(
    node: Node, tmp_path: Path
) -> None:
    measured = node.open(PythonSpec(packages=("tiny==1.0",)))
    num_bytes = int((measured.use.path.parent / "reserved_bytes").read_text())
    measured.close()
    # There is room for two of them.
    cache = DatasetCache(tmp_path / "small", max_bytes=int(2.5 * num_bytes))
    one = node.open(PythonSpec(packages=("tiny==1.0",)), cache)
    node.open(PythonSpec(packages=("tiny==2.0",)), cache).close()
    node.open(PythonSpec(packages=("tiny>1.0",)), cache).close()
    kept = {path.name for path in (tmp_path / "small" / "entries").iterdir()}
    assert one.key in kept
    assert len(kept) == 2
    one.close()


def test_a_version_that_the_node_does_not_have_is_told(node: Node) -> None:
    with pytest.raises(HopelessError, match=r"job_setting\.python\.version is 3\.99, and this node has no python3\.99"):
        node.open(PythonSpec(version="3.99"), PATH="/nowhere")


def test_another_version_cannot_have_the_clusters_packages(node: Node) -> None:
    with pytest.raises(HopelessError, match=r"asks for Python 3\.99 with system_packages"):
        node.open(PythonSpec(version="3.99", system_packages=True))


def test_an_installation_ends_with_its_attempt(root: StorageRoot, wheels: Path) -> None:
    # An index that takes the connection and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        variables = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_FIND_LINKS": "", "PIP_CONSTRAINT": ""}
        variables |= {"NO_PROXY": "*", "no_proxy": "*"}
        with open_node(root, "true", python={"packages": ["tiny"]}, env_var=variables) as node:
            node.shell.end_preparation()
            with pytest.raises(JobFailedError, match="was ended, because the attempt is over"):
                node.run()

            def end() -> None:
                try:
                    connection, _ = silent.accept()
                finally:
                    node.shell.end_preparation()
                connection.close()

            ending = threading.Thread(target=end)
            ending.start()
            with pytest.raises(JobFailedError, match="was ended, because the attempt is over"):
                node.run()
            ending.join()
    assert not list((Path(os.environ["PERIFLOW_CACHE_DIR"]) / "environments" / "entries").iterdir())


def test_a_job_that_waits_for_anothers_installation_can_be_ended(node: Node) -> None:
    running = Running()
    installer = Installer(node.variables, node.workspace, node.lines.append, running=running)
    begun, go_on = threading.Event(), threading.Event()

    def tell(text: str) -> None:
        begun.set()
        go_on.wait(30)

    spec = PythonSpec(packages=("tiny",))
    opened: list[OpenEnvironment] = []
    other = threading.Thread(
        target=lambda: opened.append(
            open_environment(
                spec,
                node.workspace,
                Installer(node.variables, node.workspace, node.lines.append),
                tell=tell,
                cache=node.cache,
            )
        )
    )
    other.start()
    assert begun.wait(30)
    with pytest.raises(JobFailedError, match="because the attempt is over"):
        open_environment(spec, node.workspace, installer, tell=lambda text: running.end(), cache=node.cache)
    go_on.set()
    other.join()
    opened[0].close()


def test_no_password_of_an_address_is_in_what_is_told(node: Node) -> None:
    address = "http://someone:of-the-index@127.0.0.1:1/tiny-1.0-py3-none-any.whl"
    (node.workspace / "requirements.txt").write_text(f"tiny @ {address}\n")
    with pytest.raises(HopelessError) as raised:
        node.open(PythonSpec(requirements="requirements.txt"), PIP_RETRIES="0", PIP_NO_INDEX="")
    assert any("http://***@127.0.0.1:1" in line for line in node.lines)
    (node.workspace / "requirements.txt").write_text(f"{address} more\n--index-url {address} more\n-e {address}\n")
    with pytest.raises(HopelessError) as refused:
        node.open(PythonSpec(requirements="requirements.txt"))
    told = [*node.lines, *raised.value.last_lines, str(raised.value), str(refused.value)]
    assert not [text for text in told if "of-the-index" in text]
