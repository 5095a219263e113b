"""How fast a job says that it is, and therefore when it says that it will be ready."""

from __future__ import annotations

import pytest

from periflow_ray.runtime.monitor import recorder
from periflow_ray.runtime.monitor.recorder import Recorder
from periflow_ray.store.root import StorageRoot


def test_a_slow_first_step_does_not_count(tmp_path, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now_s[0])
    progress = Recorder(StorageRoot(str(tmp_path)), 1, [])
    # pf.init() at once; the first step compiles for 10 s, the others take 0.1 s each.
    for now_s[0], step in ((0.0, 0), (10.0, 1), (10.5, 6), (11.0, 11), (12.0, 21)):
        progress.record(step, 1000, [])

    assert progress.progress.steps_per_s == pytest.approx(10)

    progress.forget_speed()
    # The next attempt resumes at step 20.
    for now_s[0], step in ((30.0, 20), (45.0, 21), (47.0, 31)):
        progress.record(step, 1000, [])

    assert progress.progress.steps_per_s == pytest.approx(5)
