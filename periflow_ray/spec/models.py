"""What a user asked for: the contents of pf-template.yml as frozen models.

Unknown keys are errors at every level, and a key with nothing behind it counts as absent. The descriptions are what
editors show (see ``schema``) and what the error for a missing key says.

Long because the template is one document, and its sections read best in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from periflow_ray.names import HUGGINGFACE_PREFIX
from periflow_ray.spec.duration import Duration, parse_duration_s
from periflow_ray.spec.fields import (
    ENV_VAR_NAME_PATTERN,
    AbsolutePath,
    Command,
    CountFromOne,
    CountFromZero,
    EnvVarName,
    EnvVarValue,
    HttpUrl,
    Memory,
    PositiveNumber,
    Text,
    VmNames,
    choice_reader,
    parse_memory_bytes,
    refuse,
)
from periflow_ray.spec.image import ImageName, find_bad_option
from periflow_ray.spec.python import PythonSpec
from periflow_ray.spec.section import Section
from periflow_ray.spec.sweep import SweepSpec

DEFAULT_WORKSPACE_MOUNT_PATH = "/workspace"
# How the two forms of a command appear in the locations of validation errors.
COMMAND_TEXT_TAG = "<text>"
COMMAND_STEPS_TAG = "<steps>"
# Names only: how each starts a command is in runtime/command_jobs/launchers.
LaunchMode = Literal["node", "device"]


class SetupAndRun(Section):
    """A command in its parts."""

    setup: Command | None = Field(
        default=None,
        description="Bash command that prepares the node, before 'run'; one that only installs is not run again where "
        "it succeeded.",
    )
    run: Command = Field(description="Bash command that trains.")
    teardown: Command | None = Field(
        default=None,
        description="Bash command that tidies up on each node after 'run', however that ended; its own failure is only "
        "told.",
    )


def _command_form(given: Any) -> str:
    return COMMAND_STEPS_TAG if isinstance(given, (Mapping, SetupAndRun)) else COMMAND_TEXT_TAG


class DockerSpec(Section):
    """What runs: a container image and the command in it."""

    image: ImageName | None = Field(
        default=None,
        description="Container image in which the command runs, on nodes that have Docker or Podman. Periflow-ray need "
        "not be in it.",
    )
    options: tuple[Text, ...] = Field(
        default=(),
        description="More options of 'docker run' or 'podman run', for example [--memory=64g, --cap-add=SYS_PTRACE].",
    )
    command: Annotated[
        Annotated[Command, Tag(COMMAND_TEXT_TAG)] | Annotated[SetupAndRun, Tag(COMMAND_STEPS_TAG)],
        Discriminator(_command_form),
    ] = Field(
        description="Bash command, run once per node (or device, see launch_mode): text, or {setup, run, teardown}. "
        "Set for it: MASTER_ADDR, MASTER_PORT, WORLD_SIZE, NODE_RANK, NUM_NODES, NPROC_PER_NODE."
    )
    credential_id: Text | None = Field(default=None, description="Credential for a private image registry.")
    env_var: dict[EnvVarName, EnvVarValue] = Field(
        default_factory=dict,
        description="Environment variables of the command, name: value. Values are taken as they are written.",
        json_schema_extra={"propertyNames": {"pattern": f"^{ENV_VAR_NAME_PATTERN}$"}},
    )

    @field_validator("options", mode="after")
    @classmethod
    def _refuse_what_breaks_promises(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        if bad := find_bad_option(options):
            raise refuse(bad)
        return options


class WorkspaceSpec(Section):
    """Where the user's directory appears."""

    mount_path: AbsolutePath = Field(
        default=DEFAULT_WORKSPACE_MOUNT_PATH,
        description="Absolute path below which the workspace directory appears, as <mount_path>/<directory name>.",
    )


class ResourcesSpec(Section):
    """What one device needs beside its GPU."""

    cpus: PositiveNumber | None = Field(default=None, description="CPU cores per device, for example 4.")
    memory: Memory | None = Field(default=None, description="Main memory per device, for example 16GiB or 500MB.")

    @property
    def memory_bytes(self) -> int | None:
        """Main memory per device in bytes; None when the template does not say."""
        return None if self.memory is None else parse_memory_bytes(self.memory)


class JobSetting(Section):
    """How the job runs on a node."""

    type: Annotated[Literal["custom"], BeforeValidator(choice_reader("custom"))] = Field(
        description="Kind of job; 'custom' is the only one."
    )
    docker: DockerSpec = Field(description="Container image, command and environment of the job.")
    workspace: WorkspaceSpec = Field(
        default=WorkspaceSpec(), description="Where the workspace directory appears on every node."
    )
    launch_mode: Annotated[LaunchMode, BeforeValidator(choice_reader(*get_args(LaunchMode)))] = Field(
        default="node",
        description="'node' (default) runs the command once per node, for torchrun; 'device' runs it once per device "
        "with RANK and LOCAL_RANK set, so that 'python main.py' is enough.",
    )
    resources: ResourcesSpec | None = Field(default=None, description="CPU cores and main memory per device.")
    python: PythonSpec | None = Field(
        default=None, description="Packages that the command finds, in an environment that is kept on each node."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_predefined(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("type") == "predefined":
            raise refuse(
                "is 'predefined': the hosted catalogue of predefined jobs (template_id, model_config) no longer "
                "exists. Use 'type: custom' with docker.command",
                key="type",
            )
        return given


class CheckpointInput(Section):
    """A registered checkpoint to start from."""

    id: Text = Field(
        description="Id of the checkpoint to start from, such as 12/step-00000400; list them: "
        "periflow-ray checkpoint list."
    )
    mount_path: AbsolutePath = Field(description="Absolute path where the checkpoint's files appear.")


class KeepBest(Section):
    """Which checkpoint is never deleted to make room: the best one by a metric; ``periflow_ray.KeepBest`` in Python."""

    metric: Text = Field(description="Name of the metric, as the script reports it with pf.metric.")
    mode: Annotated[Literal["min", "max"], BeforeValidator(choice_reader("min", "max"))] = Field(
        description="'min' if the lowest value is the best (a loss), 'max' if the highest is (an accuracy)."
    )


class CheckpointSpec(Section):
    """Where checkpoints come from and go to, and which of them stay."""

    output_checkpoint_dir: AbsolutePath | None = Field(
        default=None, description="Absolute path of the directory that upload_checkpoint saves and a restart refills."
    )
    input: CheckpointInput | None = Field(default=None, description="Checkpoint to start from.")
    keep_last: CountFromOne | None = Field(
        default=None,
        description="How many of the newest checkpoints stay; older ones are deleted. Without keep_last and keep_best "
        "all stay.",
    )
    keep_best: KeepBest | None = Field(
        default=None,
        description="Metric by which the best checkpoint stays, beside the newest one or the keep_last newest ones.",
    )


class DataSpec(Section):
    """The dataset of the job."""

    name: Text = Field(description="Name of a dataset, or huggingface:<dataset> for a public Hugging Face dataset.")
    mount_path: AbsolutePath = Field(description="Absolute path where the dataset's files appear.")
    config: Text | None = Field(
        default=None, description="Configuration (subset) of a Hugging Face dataset, such as wikitext-2-raw-v1."
    )
    split: Text | None = Field(
        default=None,
        description="Split of a Hugging Face dataset, such as train or train[:10%]; without it all splits.",
    )
    revision: Text | None = Field(
        default=None,
        description="Branch, tag or commit of a Hugging Face dataset; without it the newest on its main one.",
    )

    @field_validator("name", mode="after")
    @classmethod
    def _require_huggingface_name(cls, name: str) -> str:
        if name == HUGGINGFACE_PREFIX:
            raise refuse("is 'huggingface:' without a dataset; it must be huggingface:<dataset>")
        return name

    @model_validator(mode="after")
    def _refuse_parts_of_own_datasets(self) -> DataSpec:
        given = [key for key in ("config", "split", "revision") if getattr(self, key) is not None]
        if given and not self.is_huggingface:
            raise refuse(
                f"is given for '{self.name}', but only a public dataset, whose name is huggingface:<dataset>, has one",
                key=given[0],
            )
        return self

    @property
    def is_huggingface(self) -> bool:
        """Whether the dataset is a public Hugging Face one."""
        return self.name.startswith(HUGGINGFACE_PREFIX)

    @property
    def huggingface_name(self) -> str | None:
        """The dataset's name at Hugging Face; None for any other dataset."""
        return self.name.removeprefix(HUGGINGFACE_PREFIX) if self.is_huggingface else None


class DistSpec(Section):
    """Degrees of parallelism; their product is num_devices. All three are given, or none."""

    dp_degree: CountFromOne = Field(description="Data parallel degree; dist needs all three degrees.")
    pp_degree: CountFromOne = Field(description="Pipeline parallel degree; dist needs all three degrees.")
    mp_degree: CountFromOne = Field(description="Model (tensor) parallel degree; dist needs all three degrees.")


class SlackPlugin(Section):
    """Messages about the job in a Slack channel."""

    channel: Text = Field(description="Slack channel for messages about the job.")
    credential_id: Text = Field(description="Credential of type slack.")


class WebhookPlugin(Section):
    """Messages about the job as JSON, to any server that takes them."""

    url: HttpUrl | None = Field(
        default=None, description="Where the job's messages are posted; a secret URL belongs into a credential."
    )
    credential_id: Text | None = Field(default=None, description="Credential of type webhook, instead of 'url'.")

    @model_validator(mode="after")
    def _require_one_address(self) -> WebhookPlugin:
        # A secret of the one must not go to the address of the other.
        if (self.url is None) == (self.credential_id is None):
            given = "neither" if self.url is None else "both"
            raise refuse(f"has {given} of 'url' and 'credential_id'; it must have exactly one of them")
        return self


class WandbPlugin(Section):
    """Metrics at Weights & Biases."""

    credential_id: Text = Field(description="Credential of type wandb.")


class PluginSpec(Section):
    """Services that hear of the job."""

    slack: SlackPlugin | None = Field(default=None, description="Messages about the job in a Slack channel.")
    webhook: WebhookPlugin | None = Field(default=None, description="Messages about the job as JSON, to a server.")
    wandb: WandbPlugin | None = Field(default=None, description="Metrics at Weights & Biases.")

    @property
    def credentials(self) -> dict[str, tuple[str, str]]:
        """Type and name of each credential, by section: ``{"plugin.slack": ("slack", "our-slack")}``."""
        plugins = {name: getattr(self, name) for name in type(self).model_fields}
        # Each plugin has a type of credential, which is called as it is.
        return {
            f"plugin.{name}": (name, plugin.credential_id)
            for name, plugin in plugins.items()
            if plugin is not None and plugin.credential_id is not None
        }


class ElasticSpec(Section):
    """With how little the job goes on."""

    min_devices: CountFromOne = Field(description="Devices that are enough to go on while machines are missing.")


class JobSpec(Section):
    """A training job, as its pf-template.yml describes it."""

    experiment: Text | None = Field(
        default=None, description="Experiment (named group of jobs) that the job belongs to."
    )
    name: Text | None = Field(default=None, description="Name of the job; need not be unique.")
    vm: VmNames = Field(
        description="VM type to run on, or 'local' for this machine; list all: periflow-ray vm list. "
        "Of several the first one is taken that the cloud has."
    )
    fallback: Annotated[Literal["on_demand"], BeforeValidator(choice_reader("on_demand"))] | None = Field(
        default=None, description="on_demand: where the cloud has no spot VM of a type, take it at its full price."
    )
    num_devices: CountFromOne = Field(description="Devices (GPUs) of the whole job, not VMs: 16 on 4-GPU VMs is 4 VMs.")
    job_setting: JobSetting = Field(description="How the job runs: command, image, environment, workspace.")
    checkpoint: CheckpointSpec | None = Field(default=None, description="Where checkpoints come from and go to.")
    data: DataSpec | None = Field(default=None, description="Dataset of the job.")
    dist: DistSpec | None = Field(default=None, description="Degrees of parallelism; their product is num_devices.")
    plugin: PluginSpec | None = Field(default=None, description="Services that hear of the job.")
    max_failures: CountFromZero = Field(
        default=0, description="Restarts from the newest checkpoint after a failure or the loss of a machine."
    )
    hang_timeout: Duration | None = Field(
        default=None,
        description="Time without a step on any rank that counts as a hang, such as 10m: the stacks of all ranks go to "
        "the log, and it is a failure like others. Longer than the longest pause between two steps, such as an "
        "evaluation. Without it a job may stand still forever.",
    )
    elastic: ElasticSpec | None = Field(
        default=None, description="Go on with fewer devices while machines are missing; without it the job waits."
    )
    sweep: SweepSpec | None = Field(
        default=None, description="A search for the best hyperparameters: periflow-ray sweep run."
    )

    @field_validator("elastic", mode="after")
    @classmethod
    def _require_fewer_devices(cls, elastic: ElasticSpec | None, info: ValidationInfo) -> ElasticSpec | None:
        num_devices = info.data.get("num_devices")
        if elastic is not None and num_devices is not None and elastic.min_devices > num_devices:
            raise refuse(f"has min_devices {elastic.min_devices}; it must be at most num_devices, {num_devices}")
        if elastic is not None and info.data.get("dist") is not None:
            raise refuse("cannot be used with dist, whose degrees fix the number of devices")
        return elastic

    @field_validator("dist", mode="before")
    @classmethod
    def _take_empty_dist_as_absent(cls, given: Any) -> Any:
        return None if given == {} else given

    @field_validator("dist", mode="after")
    @classmethod
    def _require_matching_product(cls, dist: DistSpec | None, info: ValidationInfo) -> DistSpec | None:
        num_devices = info.data.get("num_devices")
        if dist is None or num_devices is None:
            return dist
        num_placed = dist.dp_degree * dist.pp_degree * dist.mp_degree
        if num_placed != num_devices:
            raise refuse(
                f"places {num_placed} devices (dp_degree {dist.dp_degree} x pp_degree {dist.pp_degree} x mp_degree "
                f"{dist.mp_degree}), but num_devices is {num_devices}; the product must equal num_devices"
            )
        return dist

    @property
    def vm_names(self) -> tuple[str, ...]:
        """Every VM type that the job may run on, the first choice first."""
        if self.fallback is None:
            return self.vm
        return tuple(dict.fromkeys(variant for name in self.vm for variant in (name, name.removesuffix("-spot"))))

    @property
    def hang_timeout_s(self) -> float | None:
        """Seconds without a step that count as a hang; None to wait forever."""
        return None if self.hang_timeout is None else parse_duration_s(self.hang_timeout)
