"""The environment variables that PeriFlow promises to a job's command.

Ours win over the template's ``env_var``, because torchrun's rendezvous would otherwise fail in ways that are hard to
see, with one exception: a template that sets MASTER_PORT keeps it, because its command or firewall may count on it.
"""

from __future__ import annotations

from periflow_ray.plan.job_plan import JobPlan


def node_environment(
    plan: JobPlan,
    *,
    num_nodes: int,
    node_rank: int,
    master_addr: str,
    master_port: int,
    attempt: int,
    processed_iters: int,
    output_checkpoint_dir: str | None,
) -> dict[str, str]:
    """Build the environment of a command that runs once per node (``launch_mode: node``).

    Args:
        plan: the job's plan; its ``env`` is the base. Mount paths in the values are not rewritten here.
        num_nodes: nodes that the job runs on now; an elastic one may have fewer than planned.
        node_rank: 0 to num_nodes - 1.
        master_addr: address of node 0.
        master_port: free port on node 0.
        attempt: 1 at the job's start, one more after each restart.
        processed_iters: step that the job resumes from, 0 at the start.
        output_checkpoint_dir: the directory as the command sees it on this node; None if none is declared.
    """
    contract = {
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": plan.env.get("MASTER_PORT", str(master_port)),
        "WORLD_SIZE": str(num_nodes * plan.devices_per_node),
        "NODE_RANK": str(node_rank),
        "NUM_NODES": str(num_nodes),
        "NPROC_PER_NODE": str(plan.devices_per_node),
        "PERIFLOW_ENABLED": "1",
        "PERIFLOW_ATTEMPT": str(attempt),
        "PROCESSED_ITERS": str(processed_iters),
    }
    if output_checkpoint_dir is not None:
        contract["CKPT_DIR"] = output_checkpoint_dir
    return {**plan.env, **contract}


def device_environment(
    plan: JobPlan,
    *,
    num_nodes: int,
    node_rank: int,
    local_rank: int,
    master_addr: str,
    master_port: int,
    attempt: int,
    processed_iters: int,
    output_checkpoint_dir: str | None,
) -> dict[str, str]:
    """Build the environment of a command that runs once per device (``launch_mode: device``).

    As ``node_environment``, with the ranks that torchrun would have set, so that ``python main.py`` is enough.
    """
    environment = node_environment(
        plan,
        num_nodes=num_nodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        attempt=attempt,
        processed_iters=processed_iters,
        output_checkpoint_dir=output_checkpoint_dir,
    )
    environment["RANK"] = str(node_rank * plan.devices_per_node + local_rank)
    environment["LOCAL_RANK"] = str(local_rank)
    environment["LOCAL_WORLD_SIZE"] = str(plan.devices_per_node)
    return environment
