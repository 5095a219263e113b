"""A cluster as the YAML that ``ray up`` takes. Pure: the same spec is the same text."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from periflow_ray.cluster.config import aws, azure
from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.plan.catalogue import VmType, describe_usd

VM_LABEL = "periflow-ray/vm"
# Of both clouds' HEAD_INSTANCE_TYPE.
_HEAD_NUM_VCPUS = 2
_HEAD_DISK_GIB = 100
_HEADER = """\
# {title}
#
#     ray up {file_name}
#     ray down {file_name}
#
# One head without GPUs; workers come when a job asks for them and go when nothing runs on them. See README.md.
{prices}
"""
_BEGINNING = """\
cluster_name: {spec.name}
max_workers: {spec.max_num_nodes}
idle_timeout_minutes: {spec.idle_timeout_minutes}
# As many new workers at once as a job asks for.
upscaling_speed: {spec.max_num_nodes}

"""
_NODE_TYPES = """\
auth:
  ssh_user: ubuntu

available_node_types:
  head:
    resources: {{CPU: {num_vcpus}, GPU: 0}}
    # Jobs see by it that they have to ask for their VM type by its label.
    labels: {{{label}: head}}
    node_config:
"""
_WORKER = """\
  {vm.name}:
    min_workers: 0
    max_workers: {spec.max_num_nodes}
    resources: {{CPU: {vm.num_vcpus}, GPU: {vm.num_devices}, "accelerator_type:{vm.accelerator}": 1}}
    # Jobs ask for their VM type by this.
    labels: {{{label}: {vm.name}}}
    node_config:
"""
_END = """\
head_node_type: head

# On every node: what it runs, the wheels that it is set up with, and the token without which Ray does nothing.
file_mounts:
  ~/periflow-ray/bin: {mounts.node_dir}
  ~/periflow-ray/wheels: {mounts.wheels_dir}
  ~/.ray/auth_token: {mounts.token_path}
{about}
# To run everything in a container, which needs the same Python on all nodes:
# docker: {{image: rayproject/ray:2.60.0-py312-gpu, container_name: ray, pull_before_run: true}}

initialization_commands: []
# Ray would run twice on a worker what stands here.
setup_commands: []
head_setup_commands:
  - bash ~/periflow-ray/bin/node.sh setup
worker_setup_commands:
  - bash ~/periflow-ray/bin/node.sh setup
head_start_ray_commands:
  - bash ~/periflow-ray/bin/node.sh head
worker_start_ray_commands:
  - bash ~/periflow-ray/bin/node.sh worker $RAY_HEAD_IP
"""


@dataclass(frozen=True)
class Mounts:
    """What the nodes get from the machine of whoever runs ``ray up``, by paths there.

    The defaults are for the root of a checkout. ``about_path`` is of a file with the cluster's name and storage root,
    for the program that watches over the cluster on its head; without it there is none.
    """

    node_dir: str = "periflow_ray/cluster/node"
    wheels_dir: str = "cluster_configs/wheels"
    token_path: str = "~/.ray/auth_token"
    about_path: str | None = None


def render_yaml(spec: ClusterSpec, file_name: str, title: str, mounts: Mounts | None = None) -> str:
    """The whole file.

    Args:
        file_name: as whoever runs ``ray up`` calls it.
        title: the first line of the file, for its readers.
    """
    mounts = mounts or Mounts()
    cloud = _cloud(spec)
    prices = "\n".join(f"#   {vm.name}: {describe_price(vm)}" for vm in spec.vms)
    return "".join(
        [
            _HEADER.format(title=title, file_name=file_name, prices=f"# A worker's price per hour:\n{prices}"),
            _BEGINNING.format(spec=spec),
            cloud.render_provider(spec),
            _NODE_TYPES.format(num_vcpus=_HEAD_NUM_VCPUS, label=VM_LABEL),
            cloud.render_node_config(spec, cloud.HEAD_INSTANCE_TYPE, "x86_64", _HEAD_DISK_GIB, is_spot=False),
            *(
                _WORKER.format(spec=spec, vm=vm, label=VM_LABEL)
                + cloud.render_node_config(spec, vm.instance_type, vm.architecture, spec.disk_gib, vm.is_spot)
                for vm in spec.vms
            ),
            _END.format(
                mounts=mounts,
                about=f"  ~/periflow-ray/about.json: {mounts.about_path}\n" if mounts.about_path else "",
            ),
        ]
    )


def describe_price(vm: VmType) -> str:
    """``$12.24``, or for a spot VM ``$1.49 to $2.00``; with the date of the price."""
    prices: tuple[float, ...] = () if vm.price_per_hour_usd is None else (vm.price_per_hour_usd,)
    if vm.is_spot:
        prices = vm.spot_price_per_hour_usd or ()
    return f"{describe_usd(prices)} ({vm.price_date})" if prices else "not known"


def find_instance_types(spec: ClusterSpec) -> dict[str, str]:
    """The provider's word for each node type of a cluster, by the node type's name."""
    return {"head": _cloud(spec).HEAD_INSTANCE_TYPE, **{vm.name: vm.instance_type for vm in spec.vms}}


def head_usd_per_hour(spec: ClusterSpec) -> float:
    """About what a cluster costs while it has no worker."""
    return float(_cloud(spec).HEAD_USD_PER_HOUR)


def _cloud(spec: ClusterSpec) -> ModuleType:
    return {"aws": aws, "azure": azure}[spec.cloud]
