"""That no resumed job begins anew without a word: its first save would take the place of the good ones."""

from __future__ import annotations

import os

from periflow_ray.errors import PeriFlowError
from periflow_ray.sdk.session import resumed_step

BEGIN_ANEW_VARIABLE = "PERIFLOW_BEGIN_ANEW"


def refuse_to_begin_anew(why: str) -> None:
    """Call it where a training is about to begin at its first step.

    Args:
        why: what was, or was not, found.
    Raises:
        PeriFlowError: the job resumes at a later step, and nobody allowed it to begin anew.
    """
    if resumed_step() == 0 or os.environ.get(BEGIN_ANEW_VARIABLE):
        return
    raise PeriFlowError(
        f"the job resumes at step {resumed_step()}, but {why}: the training would begin anew, and its checkpoints "
        f"would take the place of the earlier ones. If that is meant, set {BEGIN_ANEW_VARIABLE}=1 in env_var."
    )
