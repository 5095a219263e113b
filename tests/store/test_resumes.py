from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from periflow_ray.jobs.resumes import CLAIM_LASTS_S, claim_resume, read_resumed_attempts
from periflow_ray.store.keys import job_key


def test_of_twenty_who_resume_at_once_one_wins(local_root):
    barrier = threading.Barrier(20)

    def claim(_: int) -> bool:
        barrier.wait()
        return claim_resume(local_root, 1, "driver-a", 3)

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(claim, range(20))) == [*[False] * 19, True]


def test_each_driver_that_ended_can_be_followed_by_another(root):
    assert read_resumed_attempts(root, 1) == frozenset()
    assert claim_resume(root, 1, "driver-a", 2)
    assert not claim_resume(root, 1, "driver-a", 2)
    assert claim_resume(root, 1, "driver-b", 4)
    assert claim_resume(root, 2, "driver-a", 1)
    assert read_resumed_attempts(root, 1) == {2, 4}


def test_the_claim_of_a_command_that_died_expires(root):
    old = {"attempt": 2, "time_unix_s": time.time() - CLAIM_LASTS_S - 1, "claimant": "x"}
    root.write_json(job_key(1, "resumes", "driver-a-0.json"), old)
    assert claim_resume(root, 1, "driver-a", 2)
    assert not claim_resume(root, 1, "driver-a", 2)
    assert read_resumed_attempts(root, 1) == {2}
