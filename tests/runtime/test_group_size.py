"""How many workers Ray Train is told to start."""

from __future__ import annotations

import asyncio

import ray.train

from periflow_ray.runtime.ray_private import NoopDecision, ResizeDecision
from periflow_ray.runtime.ray_train.group_size import FixedPolicy


def test_a_fixed_job_starts_all_its_workers_and_needs_nobody_for_that():
    config = ray.train.ScalingConfig(num_workers=3, resources_per_worker={"CPU": 0.5})
    policy = FixedPolicy(config)
    # Without a cluster: what asked one for anything would fail.
    policy.after_controller_start(None)
    assert policy.make_decision_for_non_running_worker_group() == ResizeDecision(3, {"CPU": 0.5})
    assert policy.make_decision_for_running_worker_group(None, None) == NoopDecision()
    asyncio.run(policy.before_controller_shutdown())
    policy.before_controller_abort()
