"""A Ray node on loopback in a process of its own: answers one line of JSON to each line on its input.

    address  -> [the GCS's HOST:PORT, the node's id]
    draining -> Ray's own table of draining nodes: {node id: deadline in Unix milliseconds}
    saving NODE_ID JOB_ID, saved NODE_ID [JOB_ID] -> null, after what a job's monitor would call

Ends with its input.
"""

from __future__ import annotations

import json
import sys

import ray
import ray._private.state

from periflow_ray.runtime.notices.acknowledgement import mark_saved, mark_saving
from periflow_ray.runtime.train_run import ensure_ray


def answer(words: list[str]) -> object:
    if words == ["address"]:
        context = ray.get_runtime_context()
        return [context.gcs_address, context.get_node_id()]
    if words == ["draining"]:
        return ray._private.state.state.get_draining_nodes()
    if words[0] == "saving":
        return mark_saving(words[1], int(words[2]))
    return mark_saved(words[1], *map(int, words[2:]))


if __name__ == "__main__":
    ensure_ray()
    for line in sys.stdin:
        print(json.dumps(answer(line.split())), flush=True)
    ray.shutdown()
