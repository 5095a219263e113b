"""A process that saves checkpoints is killed at random points: what is visible is whole, and saving goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from support.saving import Saver, download_until_killed, save_until_killed
from support.short_lived import ShortLived
from support.storage_servers import StorageServer

from periflow_ray.store import checkpoints
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer, UploadItem

# 50 in all; where Azurite is not installed, 35.
NUM_KILLS = {"local": 20, "moto": 10, "rclone": 5, "azurite": 15}
# A few saves take so long on an idle machine.
LONGEST_LIFE_S = {"local": 0.1, "moto": 0.5, "rclone": 0.5, "azurite": 0.5}
# The smallest part that S3 allows.
PART_BYTES = 5 << 20
NEXT = 1000


@pytest.fixture(scope="module")
def short_lived() -> Iterator[ShortLived]:
    """Starts processes that have everything imported."""
    processes = ShortLived(("support.saving", "s3fs", "adlfs"))
    yield processes
    processes.close()


@pytest.mark.parametrize("storage", ["local", "s3-moto", "s3-rclone", "azure"], indirect=True)
def test_wherever_a_process_is_killed_what_is_visible_is_whole(any_root, storage, short_lived, tmp_path):
    kind = storage.name if isinstance(storage, StorageServer) else storage
    lives_s = random.Random(kind)
    for number in range(NUM_KILLS[kind]):
        # Every third time with a file in parts.
        model_bytes = PART_BYTES + 1 if number % 3 == 0 else 100_000
        saver = Saver(any_root, number, model_bytes, PART_BYTES, num_workers=4, scratch_dir=tmp_path)
        with short_lived.running(save_until_killed, saver):
            time.sleep(lives_s.uniform(0, LONGEST_LIFE_S[kind]))
        visible = saver.list_visible_steps(any_root)
        # Each save began when the one before was committed.
        assert visible == list(range(1, len(visible) + 1))
        assert saver.save(NEXT) is None
        assert saver.list_visible_steps(any_root) == [*visible, NEXT]
        assert all(saver.comes_back(any_root, step) for step in (*visible, NEXT))
        assert list_files_of_others(any_root, number, len(visible) + 1) in ([], ["uploading.json"])


def test_a_download_that_was_killed_goes_on_where_it_ended(proxied_server, proxy, short_lived, tmp_path):
    root = StorageRoot(proxied_server.make_uri("killed-downloads"))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(0).randbytes(4 * PART_BYTES))
    Transfer(root).upload_files([UploadItem(source, "model.pt")])
    item = DownloadItem("model.pt", target, 4 * PART_BYTES, checksum_file(source))
    with short_lived.running(download_until_killed, root, item, PART_BYTES, 3 * PART_BYTES):
        assert not target.exists()
    proxy.plan_none()
    told: list[int] = []
    Transfer(root, part_bytes=PART_BYTES, on_bytes=told.append).download_files([item])
    assert target.read_bytes() == source.read_bytes()
    assert sum(told) == 4 * PART_BYTES
    assert len([request for request in proxy.requests if request.startswith("GET ")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def list_files_of_others(root: StorageRoot, job_id: int, step: int) -> list[str]:
    """What is left of the checkpoint that the killed process was at."""
    return list(root.list_files(checkpoints.checkpoint_key(job_id, f"step-{step:08d}")))
