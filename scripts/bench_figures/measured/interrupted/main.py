"""Trains for ever with the SDK, in a job or under a bare torchrun.

main.py MARKS_DIR STEP_TIME_S STEPS_PER_CHECKPOINT
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STARTED_UNIX_S = time.time()

import torch.distributed as dist  # noqa: E402
from training import Marks, Training  # noqa: E402

import periflow_ray as pf  # noqa: E402


def main() -> None:
    rank = int(os.environ["RANK"])
    marks = Marks(sys.argv[1], rank)
    marks.write("start", STARTED_UNIX_S)
    marks.write("imported")
    step_time_s, steps_per_checkpoint = float(sys.argv[2]), int(sys.argv[3])
    directory = Path(os.environ["CKPT_DIR"])
    dist.init_process_group("gloo")
    training = Training(directory, step_time_s)
    marks.write("ready")
    pf.init(local_log_name=os.devnull)
    while True:
        with pf.train_step():
            training.make_step()
        pf.metric({"progress": training.step})
        marks.write(training.step)
        if pf.is_emergency_save() or training.step % steps_per_checkpoint == 0:
            marks.write(f"save-{training.step}")
            if rank == 0:
                training.save(directory)
            pf.upload_checkpoint()
            marks.write(f"saved-{training.step}")


if __name__ == "__main__":
    main()
