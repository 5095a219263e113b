"""Times SDK steps in this process: ``step_timer.py MODULE LOCAL_LOG``, with MODULE periflow_ray or periflow_sdk.

Asked ``time`` it answers with the microseconds of a step, asked ``count`` with the number of steps so far.
"""

import importlib
import sys
import time

# Longer than the 0.5 s after which our SDK sends what it has buffered, so that its sender is at work in every batch.
BATCH_S = 0.6
NUM_STEPS_PER_LOOK = 100


def main() -> None:
    module_name, local_log = sys.argv[1:]
    sdk = importlib.import_module(module_name)
    sdk.init(10**9, local_log_name=local_log)
    num_steps = 0
    print("ready", flush=True)
    for question in sys.stdin:
        if question.strip() == "count":
            print(num_steps, flush=True)
            continue
        num_timed = 0
        start_s = time.perf_counter()
        elapsed_s = 0.0
        while elapsed_s < BATCH_S:
            run_steps(sdk, NUM_STEPS_PER_LOOK)
            num_timed += NUM_STEPS_PER_LOOK
            elapsed_s = time.perf_counter() - start_s
        num_steps += num_timed
        print(elapsed_s / num_timed * 1e6, flush=True)


def run_steps(sdk, num_steps):
    for _ in range(num_steps):
        with sdk.train_step():
            sdk.metric({"loss": 0.5, "accuracy": 0.25})
        sdk.is_emergency_save()


if __name__ == "__main__":
    main()
