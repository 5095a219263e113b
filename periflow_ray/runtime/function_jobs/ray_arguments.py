"""Reads the arguments of Ray's own ``TorchTrainer`` as those of a function job. Pure: it decides, others run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray.train
from ray.train.constants import DEFAULT_STORAGE_PATH

from periflow_ray.errors import UsageError
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.spec import KeepBest

# Ray's own name for a run that has none.
_RAYS_NAME = re.compile(r"ray_train_run-\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}$")

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class OwnArguments:
    """``periflow_ray.TorchTrainer``'s own arguments that Ray has words for, too; None where one is not given."""

    num_devices: int | None = None
    min_devices: int | None = None
    use_gpu: bool | None = None
    resources_per_device: Mapping[str, float] | None = None
    max_failures: int | None = None
    name: str | None = None
    storage: str | None = None
    keep_last: int | None = None
    keep_best: KeepBest | None = None
    vm: Any = None


@dataclass(frozen=True)
class TrainerArguments:
    """What both kinds of arguments come to.

    Args:
        scaling: has what Ray alone decides on, such as ``placement_strategy``.
        run: has what Ray alone decides on, such as ``callbacks``.
    """

    num_devices: int
    min_devices: int
    use_gpu: bool | None
    resources_per_device: Mapping[str, float] | None
    max_failures: int
    name: str | None
    storage: str | None
    retention: Retention
    score: KeepBest | None
    scaling: ray.train.ScalingConfig = field(default_factory=ray.train.ScalingConfig)
    run: ray.train.RunConfig = field(default_factory=ray.train.RunConfig)


def read_arguments(
    own: OwnArguments,
    scaling: ray.train.ScalingConfig | None = None,
    run: ray.train.RunConfig | None = None,
    *,
    metadata: object = None,
    validation_config: object = None,
) -> TrainerArguments:
    """Bring both kinds of arguments together.

    Raises:
        UsageError: with every argument that has no meaning in a job, what to write instead, and those that
            contradict each other.
    """
    reading = _Reading(own, scaling, run)
    if metadata is not None:
        reading.refuse("metadata", "put it into train_loop_config, which the function gets")
    if validation_config is not None:
        reading.refuse("validation_config", "evaluate in the function, and report the metrics")
    return reading.read()


class _Reading:
    def __init__(
        self, own: OwnArguments, scaling: ray.train.ScalingConfig | None, run: ray.train.RunConfig | None
    ) -> None:
        self._own = own
        self._problems: list[str] = []
        self._has_scaling = scaling is not None
        self._scaling = self._require(scaling, ray.train.ScalingConfig, "scaling_config")
        self._run = self._require(run, ray.train.RunConfig, "run_config")

    def refuse(self, word: str, instead: str) -> None:
        """Note an argument that has no meaning here."""
        self._problems.append(f"{word} has no meaning in a job: {instead}.")

    def read(self) -> TrainerArguments:
        num_devices, min_devices = self._read_size()
        retention, score = self._read_checkpoint_config()
        arguments = TrainerArguments(
            num_devices=num_devices,
            min_devices=min_devices,
            use_gpu=self._read_use_gpu(),
            resources_per_device=self._choose(
                self._own.resources_per_device,
                self._scaling.resources_per_worker,
                None,
                "resources_per_device",
                "ScalingConfig(resources_per_worker)",
            ),
            max_failures=self._read_failure_config(),
            name=self._choose(self._own.name, self._read_name(), None, "name", "RunConfig(name)"),
            storage=self._read_storage(),
            retention=retention,
            score=score,
            scaling=self._scaling,
            run=self._run,
        )
        self._refuse_rest_of_scaling()
        if self._problems:
            raise UsageError("\n".join(self._problems))
        return arguments

    def _require(self, given: Any, kind: type[_Value], word: str) -> _Value:
        if given is not None and not isinstance(given, kind):
            self._problems.append(f"{word} must be a ray.train.{kind.__name__}, not {type(given).__name__}.")
        return given if isinstance(given, kind) else kind()

    def _choose(self, own: Any, rays: _Value, default: _Value, own_word: str, rays_word: str) -> Any:
        """Either of the two; a default of Ray's is not given."""
        if rays == default:
            return own
        if own is not None and own != rays:
            self._problems.append(
                f"{own_word}={own!r} and {rays_word}={rays!r} contradict each other: give one of them."
            )
        return rays

    def _read_size(self) -> tuple[int, int]:
        given = self._scaling.num_workers
        least, most = given if isinstance(given, tuple) else (None, given)
        if most == 0 or least == 0:
            self.refuse("ScalingConfig(num_workers=0)", "num_workers=1 runs the function on one device")
        num_devices = self._choose(self._own.num_devices, most, 1, "num_devices", "ScalingConfig(num_workers)")
        min_devices = self._choose(self._own.min_devices, least, None, "min_devices", "ScalingConfig(num_workers)[0]")
        num_devices = 1 if num_devices is None else num_devices
        return num_devices, num_devices if min_devices is None else min_devices

    def _read_use_gpu(self) -> bool | None:
        chosen: bool | None = self._choose(
            self._own.use_gpu, self._scaling.use_gpu, False, "use_gpu", "ScalingConfig(use_gpu)"
        )
        # Ray's default is a word: no GPU. That of a job is to look.
        is_left_open = chosen is None and self._has_scaling and self._own.vm is None
        return False if is_left_open else chosen

    def _refuse_rest_of_scaling(self) -> None:
        if self._scaling.use_tpu or self._scaling.topology is not None:
            self.refuse("ScalingConfig(use_tpu, topology)", "jobs run on GPUs or CPUs")
        if self._own.vm is not None and (self._scaling.label_selector or self._scaling.accelerator_type):
            self._problems.append(
                "vm and ScalingConfig(label_selector, accelerator_type) contradict each other: vm chooses the nodes."
            )

    def _read_name(self) -> str | None:
        name = self._run.name
        return None if name is None or _RAYS_NAME.match(name) else name

    def _read_storage(self) -> str | None:
        if self._run.storage_filesystem is not None:
            self.refuse(
                "RunConfig(storage_filesystem)",
                "write storage_path as a URI (s3://, gs://, abfs://) and name its keys with storage_credential",
            )
        chosen: str | None = self._choose(
            self._own.storage, self._run.storage_path, DEFAULT_STORAGE_PATH, "storage", "RunConfig(storage_path)"
        )
        return chosen

    def _read_checkpoint_config(self) -> tuple[Retention, KeepBest | None]:
        config = self._run.checkpoint_config
        assert config is not None
        score = None
        if config.checkpoint_score_attribute is not None:
            score = KeepBest(metric=config.checkpoint_score_attribute, mode=config.checkpoint_score_order)
        own = Retention(self._own.keep_last, self._own.keep_best)
        if config.num_to_keep is None:
            return own, score or self._own.keep_best
        # Ray keeps the newest one beside the best ones, because a restart needs it.
        rays = Retention(config.num_to_keep) if score is None else Retention(1, score, config.num_to_keep)
        if own not in (Retention(), rays):
            self._problems.append(
                "keep_last, keep_best and CheckpointConfig(num_to_keep) contradict each other: give one of them."
            )
        return rays, score

    def _read_failure_config(self) -> int:
        config = self._run.failure_config
        assert config is not None
        default = ray.train.FailureConfig(max_failures=config.max_failures)
        others = {
            one.name for one in dataclasses.fields(config) if getattr(config, one.name) != getattr(default, one.name)
        }
        if others:
            self.refuse(
                f"FailureConfig({', '.join(sorted(others))})",
                "restarts after a machine was taken away with notice are never counted, and its ranks save before it",
            )
        chosen = self._choose(
            self._own.max_failures, config.max_failures, 0, "max_failures", "FailureConfig(max_failures)"
        )
        return chosen or 0
