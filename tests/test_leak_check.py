"""The check that every test ends its processes: children of any thread count, the dead and the older ones do not."""

from __future__ import annotations

import subprocess
import threading

from support.children import find_child_pids, wait_for_new_children


def test_a_living_child_is_named_and_a_dead_or_older_one_is_not():
    before = find_child_pids()
    dead, living = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "600"])
    try:
        assert wait_for_new_children(before, deadline_s=0.2) == {living.pid: "sleep 600"}
        assert wait_for_new_children({*before, living.pid}, deadline_s=60) == {}
    finally:
        living.kill()
    # Neither is waited for yet.
    assert wait_for_new_children(before, deadline_s=60) == {}
    assert {dead.pid, living.pid} <= find_child_pids()
    dead.wait()
    living.wait()
    assert find_child_pids() == before


def test_children_of_living_and_of_ended_threads_are_seen():
    before = find_child_pids()
    children: list[subprocess.Popen[bytes]] = []
    has_started, may_end = threading.Event(), threading.Event()

    def start(wait: bool) -> None:
        children.append(subprocess.Popen(["sleep", "600"]))
        has_started.set()
        if wait:
            may_end.wait()

    ended = threading.Thread(target=start, args=(False,))
    ended.start()
    ended.join()
    has_started.clear()
    waiting = threading.Thread(target=start, args=(True,))
    waiting.start()
    try:
        assert has_started.wait(60)
        assert find_child_pids() - before == {child.pid for child in children}
    finally:
        may_end.set()
        waiting.join()
        for child in children:
            child.kill()
            child.wait()
