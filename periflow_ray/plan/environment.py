"""The environment variables that PeriFlow promises to a job's command.

Ours win over the template's ``env_var``, because torchrun's rendezvous would otherwise fail in ways that are hard to
see, with one exception: a template that sets MASTER_PORT keeps it, because its command or firewall may count on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from periflow_ray.plan.job_plan import JobPlan


@dataclass(frozen=True)
class NodeFacts:
    """What a plan cannot say of a node: its place in one attempt, and where that attempt begins.

    Args:
        num_nodes: nodes that the job runs on now; an elastic one may have fewer than planned.
        node_rank: 0 to num_nodes - 1.
        master_addr: address of node 0.
        master_port: free port on node 0.
        attempt: 1 at the job's start, one more after each restart.
        processed_iters: step that the job resumes from, 0 at the start.
        output_checkpoint_dir: the directory as the command sees it on this node; None if none is declared.
    """

    num_nodes: int
    node_rank: int
    master_addr: str
    master_port: int
    attempt: int
    processed_iters: int
    output_checkpoint_dir: str | None


def node_environment(plan: JobPlan, node: NodeFacts) -> dict[str, str]:
    """Build the environment of a command that runs once per node (``launch_mode: node``).

    The plan's ``env`` is the base. Mount paths in the values are not rewritten here.
    """
    contract = {
        "MASTER_ADDR": node.master_addr,
        "MASTER_PORT": plan.env.get("MASTER_PORT", str(node.master_port)),
        "WORLD_SIZE": str(node.num_nodes * plan.devices_per_node),
        "NODE_RANK": str(node.node_rank),
        "NUM_NODES": str(node.num_nodes),
        "NPROC_PER_NODE": str(plan.devices_per_node),
        "PERIFLOW_ENABLED": "1",
        "PERIFLOW_ATTEMPT": str(node.attempt),
        "PROCESSED_ITERS": str(node.processed_iters),
    }
    if node.output_checkpoint_dir is not None:
        contract["CKPT_DIR"] = node.output_checkpoint_dir
    return {**plan.env, **contract}


def device_environment(plan: JobPlan, node: NodeFacts, local_rank: int) -> dict[str, str]:
    """Build the environment of a command that runs once per device (``launch_mode: device``).

    As ``node_environment``, with the ranks that torchrun would have set, so that ``python main.py`` is enough.
    """
    return {
        **node_environment(plan, node),
        "RANK": str(node.node_rank * plan.devices_per_node + local_rank),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(plan.devices_per_node),
    }
