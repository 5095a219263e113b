"""Which of a Ray worker's environment variables are no business of the user's code. Pure.

A worker's environment says what Ray has set in it, and how Ray itself was started: below srun or mpirun, in a pod of
Kubernetes. Libraries take the latter for how the job's own processes were started.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of each process of a launcher: which one it is, of how many, and where their leader is. Slurm's names of the job
# itself (SLURM_JOB_ID, SLURM_JOB_NODELIST) stay, because an srun in the command needs them; it sets the others anew.
_LAUNCHER_PREFIXES = (
    "OMPI_COMM_WORLD_",
    "MV2_COMM_WORLD_",
    "PMI_",
    "PMIX_",
    "MPI_LOCAL",
    "JSM_NAMESPACE_",
    "SLURM_STEP",
    "SLURM_SRUN_",
)
_LAUNCHER_NAMES = frozenset(
    {
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_NODEID",
        "SLURM_NTASKS",
        "SLURM_NPROCS",
        "SLURM_NTASKS_PER_NODE",
        "SLURM_TASKS_PER_NODE",
        "SLURM_TASK_PID",
        "SLURM_GTIDS",
        # By this one, earlier versions of Lightning take a pod for one of Kubeflow's training operator. Clients of
        # Kubernetes read KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
        "KUBERNETES_PORT",
    }
)
# Ray sets them in a worker that runs, unless they are set: https://docs.ray.io/en/latest/ray-core/configure.html
_SET_IN_WORKER = frozenset({"OMP_NUM_THREADS", "PYTHONBREAKPOINT"})
# Of Ray's own processes; the embedded cluster sets those of the dashboard.
_RAYS_OWN = frozenset(
    {
        "SPT_NOENV",
        "REPORTER_UPDATE_INTERVAL_MS",
        "METRICS_RECORD_INTERVAL_S",
        "SCAN_EVENT_DIR_INTERVAL_SECONDS",
        "EVENT_AGENT_REPORT_INTERVAL_SECONDS",
        "NODE_STATS_UPDATE_INTERVAL_SECONDS",
        "AUTOSCALER_METRIC_PORT",
        "DASHBOARD_METRIC_PORT",
    }
)


def is_of_launcher(name: str) -> bool:
    """Whether a launcher other than the job's own sets this variable for each of its processes.

    One that is the same for all processes of a job, from the machine or the template's ``env_var``, cannot be true.
    """
    # Settings of Open MPI's own, which are the same for all processes.
    is_setting = name.startswith("PMIX_MCA_")
    return not is_setting and (name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES))


def find_foreign_variables(
    environ: Mapping[str, str], started_with: Mapping[str, str], *, is_alone: bool
) -> frozenset[str]:
    """Names of what user code in a worker, or below it, must not find.

    Args:
        environ: the worker's environment as it is now.
        started_with: as it was when the worker started.
        is_alone: no other worker of the job is on this machine, so that all its processors are for this one; as many
            threads as Ray counts CPUs would be fewer than the user's code has without Ray.
    """
    set_by_ray = {name for name in _SET_IN_WORKER if name in environ and environ[name] != started_with.get(name)}
    if not is_alone:
        set_by_ray.discard("OMP_NUM_THREADS")
    return frozenset(name for name in environ if name in _RAYS_OWN or name in set_by_ray or is_of_launcher(name))
