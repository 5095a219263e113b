"""A Ray node on loopback in a process of its own: answers one line of JSON to each line on its input.

    address  -> [the GCS's HOST:PORT, the node's id]
    draining -> Ray's own table of draining nodes: {node id: deadline in Unix milliseconds}
    rest     -> null, after the end of the only work on the node
    saving NODE_ID JOB_ID, saved NODE_ID [JOB_ID] -> null, after what a job's monitor would call

Ends with its input.
"""

from __future__ import annotations

import json
import sys

import ray

from periflow_ray.runtime import ray_private
from periflow_ray.runtime.notices.acknowledgement import mark_saved, mark_saving
from periflow_ray.runtime.ray_train.train_run import ensure_ray


def answer(words: list[str], work: ray.actor.ActorHandle) -> object:
    if words == ["address"]:
        context = ray.get_runtime_context()
        return [context.gcs_address, context.get_node_id()]
    if words == ["draining"]:
        return ray_private.read_draining_nodes()
    if words == ["rest"]:
        return ray.kill(work)
    if words[0] == "saving":
        return mark_saving(words[1], int(words[2]))
    return mark_saved(words[1], *map(int, words[2:]))


@ray.remote(num_cpus=0.1)
class Work:
    """Without any work a drained node leaves Ray at once."""

    def is_running(self) -> bool:
        return True


if __name__ == "__main__":
    ensure_ray()
    work = Work.remote()
    assert ray.get(work.is_running.remote())
    for line in sys.stdin:
        print(json.dumps(answer(line.split(), work)), flush=True)
    ray.shutdown()
