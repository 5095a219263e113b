"""PyTorch Lightning (2 or newer) in a job: one callback, one trainer, and a helper for function jobs.

    from periflow_ray.lightning import PeriFlowTrainer

    PeriFlowTrainer(max_epochs=10).fit(model, loader)

That reports progress and metrics, uploads what ``ModelCheckpoint`` writes, saves in an emergency, takes devices and
nodes from the job and resumes after a restart. ``Trainer(callbacks=[PeriFlowCallback()])`` does the first three.

Works with ``pytorch_lightning`` and with ``lightning.pytorch``: with the one that the importing script imports too.
"""

from __future__ import annotations

from periflow_ray.lightning.callback import PeriFlowCallback
from periflow_ray.lightning.checkpoints import latest_checkpoint
from periflow_ray.lightning.ray_worker import prepare_trainer
from periflow_ray.lightning.trainer import PeriFlowTrainer

__all__ = ["PeriFlowCallback", "PeriFlowTrainer", "latest_checkpoint", "prepare_trainer"]
