"""``import periflow_sdk as pf`` inside a job: PeriFlow's module name over periflow-ray's SDK."""

from periflow_ray.errors import PeriFlowError
from periflow_ray.sdk import (
    end_step,
    init,
    is_emergency_save,
    metric,
    resumed_step,
    start_step,
    train_step,
    upload_checkpoint,
)

__all__ = [
    "PeriFlowError",
    "end_step",
    "init",
    "is_emergency_save",
    "metric",
    "resumed_step",
    "start_step",
    "train_step",
    "upload_checkpoint",
]
