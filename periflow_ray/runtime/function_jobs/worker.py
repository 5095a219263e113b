"""The Ray Train worker of a function job: the user's function runs here, with its SDK session in-process."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable
from typing import Any

from periflow_ray.jobs.logs import LogWriter
from periflow_ray.runtime.diagnosis import NUM_SHOWN_LINES, Failure
from periflow_ray.runtime.function_jobs.channel import FunctionChannel
from periflow_ray.runtime.function_jobs.output_tee import copy_output
from periflow_ray.runtime.function_jobs.rank import FunctionRank, FunctionTask
from periflow_ray.runtime.ray_train.group_policy import GroupReplacedError
from periflow_ray.sdk.session import use_channel_factory

# A rank that died makes the others fail at once; Ray Train notices the death itself within this time.
LOSS_NOTICE_S = 1.0


def run_function(task: FunctionTask) -> Any:
    """Run the user's function as one rank, restored to the latest committed checkpoint; returns what it returns.

    Its output goes to the job's log as that of node <rank>, because each rank is a machine's worth of its own here.
    """
    rank = FunctionRank(task)
    meeting = rank.join()
    try:
        with copy_output(LogWriter(task.root, task.job_id, rank.rank)) as output:
            rank.prepare(meeting, output)
            use_channel_factory(lambda local_log_name: FunctionChannel(rank))
            result = _call_and_trace(task.train_loop, task.config)
        use_channel_factory(None)
        rank.finish_uploads()
    except BaseException as err:
        failure = _describe_exception(err, rank)
        use_channel_factory(None)
        if meeting.num_members > 1:
            time.sleep(LOSS_NOTICE_S)
        rank.fail(failure)
        raise
    if rank.leave() != "end":
        raise GroupReplacedError("another rank failed")
    rank.report_newest()
    return result


def _call_and_trace(train_loop: Callable[..., Any], config: dict[str, Any] | None) -> Any:
    takes_config = bool(inspect.signature(train_loop).parameters)
    try:
        return train_loop(config or {}) if takes_config else train_loop()
    except Exception:
        traceback.print_exc()
        raise


def _describe_exception(error: BaseException, rank: FunctionRank) -> Failure:
    frames = traceback.extract_tb(error.__traceback__)
    is_in_function = len(frames) > 2 and frames[1].name == _call_and_trace.__name__
    # Past this module's two frames begins the user's code.
    lines = "".join(traceback.format_list(frames[2:])).rstrip().splitlines() if is_in_function else []
    return Failure(
        node_rank=rank.node_rank,
        rank=rank.rank,
        time_unix_s=time.time(),
        last_lines=tuple(lines[-NUM_SHOWN_LINES:]),
        summary=f"the function raised {type(error).__name__}: {error}" if is_in_function else str(error),
    )
