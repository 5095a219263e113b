"""Jobs whose template names an image: the losses of the table, in containers."""

from __future__ import annotations

import os
import platform
import re
import signal
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_chain_job import HashChainJob, WriteJob
from support.container_images import IMAGE_PACKAGES, Podman
from support.hash_chain import HashChain
from support.workbench import Workbench, find_agent, processes_with, wait_until

from periflow_ray.jobs.environments import read_environments
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.submit.local_cluster import LocalClusterDir, stop_local_cluster

pytestmark = pytest.mark.ray

TESTS_DIR = Path(__file__).parents[1]
EXAMPLE_DIR = TESTS_DIR.parent / "examples" / "cifar"
# The name in the tutorials' templates.
IMAGE = "docker.io/friendliai/periflow:sdk"
CHAIN = HashChain(num_steps=2000, step_time_s=0.02, save_every=25)


@pytest.fixture(scope="module")
def containers(served_podman: tuple[Podman, str]) -> Iterator[Workbench]:
    """A workbench whose cluster finds Podman, and the tutorials' image."""
    podman, image = served_podman
    podman.run("tag", image, IMAGE)
    with tempfile.TemporaryDirectory(prefix="pf-images-", dir="/tmp") as directory:
        bench = Workbench(Path(directory, "storage"), Path(directory, "cluster"))
        bench.env |= podman.environment
        yield bench
        stop_local_cluster(LocalClusterDir(bench.cluster_dir))
        wait_until(lambda: not processes_with(str(bench.cluster_dir)), "the embedded cluster ends", 60)
    podman.run("untag", image, IMAGE)


def test_losses_cost_in_containers_what_they_cost_without(
    containers: Workbench, podman: Podman, write_job: WriteJob, tmp_path: Path
) -> None:
    def write(*arguments: Any, **options: Any) -> tuple[Path, Path]:
        template, workspace = write_job(*arguments, **options)
        # The signs of the test are beside the cluster.
        seen = containers.cluster_dir.parent
        text = template.read_text()
        assert "image: friendliai/periflow:sdk" in text
        template.write_text(text.replace("    command:", f"    options: [--volume={seen}:{seen}]\n    command:"))
        return template, workspace

    job = HashChainJob(containers, write, CHAIN)
    job.wait_for_checkpoint()
    assert len(podman.list_containers()) == 2
    rank = job.find_rank(1)
    assert rank is not None
    os.kill(rank, signal.SIGKILL)
    wait_until(lambda: len(job.attempts()) == 2 and job.checkpoint_step() > 25, "attempt 2 trains")
    drill = containers.run("job", "drill", job.job_id, "--notice", "30s")
    assert drill.exit_code == 0, drill
    assert "node 1 was taken away, 30 s notice; saved at step" in drill.stdout
    reached = job.checkpoint_step()
    os.kill(find_agent(job.sandbox(0)), signal.SIGKILL)
    wait_until(lambda: len(job.attempts()) == 4 and job.checkpoint_step() > reached, "attempt 4 trains")
    job.hurry()
    attempts = job.finish()

    assert [attempt.cause for attempt in attempts] == ["failure", "preemption", "lost", None]
    assert job.read_states(tmp_path / "restored") == job.expected_states
    notes = "\n".join(event.text for event in read_events(containers.root, job.job_id))
    assert "runs in the image friendliai/periflow:sdk (sha256:" in notes
    wait_until(lambda: podman.list_containers() == [], "no container is left")
    assert processes_with(job.sandbox(0)) == processes_with(job.sandbox(1)) == []


def test_an_example_trains_in_the_image_of_its_template(containers: Workbench, podman: Podman, image: str) -> None:
    template = EXAMPLE_DIR / "pf-template.yml"
    named = re.search(r"^    image: (\S+)$", template.read_text(), re.M)
    assert named is not None
    podman.run("tag", image, f"docker.io/{named[1]}")
    # Torch is in that image. Here it is this machine's, with the libraries that it needs, see tests/torchvision_shim.
    libraries, shim = f"/usr/lib/{platform.machine()}-linux-gnu", str(TESTS_DIR / "torchvision_shim")
    podman.bring({sysconfig.get_path("purelib"): IMAGE_PACKAGES, libraries: libraries, shim: shim})
    try:
        outcome, job = containers.submit(template, EXAMPLE_DIR, "--num-devices", 2, "--require-image")
    finally:
        podman.bring({})
        podman.run("untag", image, f"docker.io/{named[1]}")
    assert outcome.exit_code == 0, outcome
    losses = [m.values["loss"] for m in read_metrics(containers.root, job.record.job_id) if "loss" in m.values]
    assert sum(losses[-3:]) < sum(losses[:3])
    (record, _) = read_environments(containers.root, job.record.job_id)
    assert record.image is not None
    assert record.image.startswith(named[1])
    shown = containers.run("job", "view", job.record.job_id)
    assert named[1] in shown.stdout
