"""Lightning trainers inside real Ray Train workers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from periflow_ray.errors import PeriFlowError
from periflow_ray.lightning import prepare_trainer


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers saw, by case; one worker group runs all cases, because starting one takes seconds."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    results_dir = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # This cluster is the test's own, whatever the environment says of another one.
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("RAY_AUTH_MODE", raising=False)
        # For this module, and for what it shares with others.
        for directory in Path(__file__).parents[:2]:
            patch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            TorchTrainer(
                train_all_cases,
                train_loop_config={"results_dir": str(results_dir)},
                scaling_config=ScalingConfig(num_workers=2),
                run_config=RunConfig(storage_path=str(results_dir / "storage")),
            ).fit()
        finally:
            ray.shutdown()
    return [json.loads((results_dir / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def train_all_cases(config: dict[str, Any]) -> None:
    import ray.train
    from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
    from support.tiny_regression import QUIET

    from periflow_ray.lightning import checkpoints

    class UsersFSDPStrategy(FSDPStrategy):
        """Lightning refuses its own class on a CPU, whoever prepares it."""

    results_dir = Path(config["results_dir"])
    os.environ["CKPT_DIR"] = str(results_dir / "ckpt")
    os.chdir(results_dir)
    options_by_case: dict[str, dict[str, Any]] = {
        "plain": {},
        "resumed": {"max_epochs": 2},
        "customized": {
            "strategy": DDPStrategy(find_unused_parameters=True),
            "precision": "bf16-mixed",
            "sync_batchnorm": True,
            "use_distributed_sampler": False,
        },
        "spawn": {"strategy": "ddp_spawn"},
        "fsdp": {"strategy": UsersFSDPStrategy(state_dict_type="sharded")},
    }
    results = {}
    for case, options in options_by_case.items():
        os.environ["PROCESSED_ITERS"] = "2" if case == "resumed" else "0"
        # Each case stands for a process of its own.
        checkpoints._Fits.num_begun = 0
        trainer = pl.Trainer(**{"max_epochs": 1, **QUIET, "accelerator": "auto", **options})
        assert prepare_trainer(trainer) is trainer
        results[case] = train(trainer, can_fit=case != "fsdp")
    results["checkpoints"] = sorted(path.name for path in (results_dir / "ckpt").iterdir())
    rank = ray.train.get_context().get_world_rank()
    (results_dir / f"rank{rank}.json").write_text(json.dumps(results))


def train(trainer: pl.Trainer, can_fit: bool) -> dict[str, Any]:
    from support.tiny_regression import TinyRegression, make_loader

    module = TinyRegression()
    if can_fit:  # PyTorch's FSDP refuses to train on a CPU.
        trainer.fit(module, make_loader(4))
    strategy = trainer.strategy
    return {
        "strategy": type(strategy).__name__,
        "ranks": [trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.world_size],
        "devices": [trainer.num_devices, trainer.num_nodes, str(strategy.root_device)],
        "num_batches": len(module.seen),
        "precision": trainer.precision,
        "layer_sync": type(getattr(strategy, "_layer_sync", None)).__name__,
        "ddp_options": getattr(strategy, "_ddp_kwargs", None),
        "state_dict_type": getattr(strategy, "_state_dict_type", None),
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "global_step": trainer.global_step,
    }


PLAIN = {
    "strategy": "RayDDPStrategy",
    "ranks": [0, 0, 0, 2],
    "devices": [2, 1, "cpu"],
    "num_batches": 2,
    "precision": "32-true",
    "layer_sync": "NoneType",
    "ddp_options": {},
    "state_dict_type": None,
    "callbacks": ["PeriFlowCallback", "ModelCheckpoint"],
    "global_step": 2,
}


@pytest.mark.ray
def test_a_plain_trainer_trains_with_ddp_over_all_workers(ranks):
    assert ranks[0]["plain"] == PLAIN
    assert ranks[1]["plain"] == {**PLAIN, "ranks": [1, 1, 0, 2]}


@pytest.mark.ray
def test_checkpoints_go_to_the_jobs_directory_and_a_restart_resumes_from_them(ranks):
    assert [rank["resumed"] for rank in ranks] == [
        {**PLAIN, "global_step": 4},
        {**PLAIN, "global_step": 4, "ranks": [1, 1, 0, 2]},
    ]
    assert "epoch=1-step=4.ckpt" in ranks[0]["checkpoints"]


@pytest.mark.ray
def test_what_the_user_set_is_kept(ranks):
    assert ranks[0]["customized"] == {
        **PLAIN,
        "num_batches": 4,
        "precision": "bf16-mixed",
        "layer_sync": "TorchSyncBatchNorm",
        "ddp_options": {"find_unused_parameters": True},
        "global_step": 4,
    }


@pytest.mark.ray
def test_ddp_spawn_starts_no_processes_of_its_own(ranks):
    assert [rank["spawn"] for rank in ranks] == [PLAIN, {**PLAIN, "ranks": [1, 1, 0, 2]}]


@pytest.mark.ray
def test_fsdp_stays_fsdp_with_its_options(ranks):
    expected = {
        **PLAIN,
        "strategy": "RayFSDPStrategy",
        "num_batches": 0,
        "global_step": 0,
        "ddp_options": None,
        "state_dict_type": "sharded",
    }
    assert [rank["fsdp"] for rank in ranks] == [expected, {**expected, "ranks": [1, 1, 0, 2]}]


def test_outside_a_ray_train_worker_the_error_says_where_to_call_it():
    with pytest.raises(PeriFlowError, match="call it in train_loop_per_worker"):
        prepare_trainer(pl.Trainer(accelerator="cpu", logger=False))


def test_something_else_than_a_trainer_is_refused():
    with pytest.raises(PeriFlowError, match=r"got a builtins\.str, but needs a pytorch_lightning\.Trainer"):
        prepare_trainer("trainer")
