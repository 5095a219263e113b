"""A rank of a job with always the same work in a step, on one core: ``fixed_work.py ADDRESS``.

It connects to ADDRESS, a Unix-domain socket, and is asked there for
    ``("steps", N)``       so many steps with the SDK's calls; it answers with the seconds that took and the CPU seconds
                           of its other threads meanwhile;
    ``("bare_steps", N)``  the same without the SDK's calls;
    ``("calls", N)``       the SDK's calls of so many steps alone; it answers with the seconds of one step's calls.
It ends when the connection does.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Client

import torch

import periflow_ray as pf

BATCH_SIZE, WIDTH = 128, 1024


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(BATCH_SIZE, WIDTH)
    pf.init()

    def work() -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    with Client(sys.argv[1]) as connection:
        while True:
            try:
                what, num_steps = connection.recv()
            except EOFError:
                return
            if what == "calls":
                connection.send(time_calls(num_steps))
                continue
            others_s = time.process_time() - time.thread_time()
            began_s = time.perf_counter()
            if what == "steps":
                for _ in range(num_steps):
                    with pf.train_step():
                        work()
                        pf.metric({"loss": 0.5, "accuracy": 0.25})
                    pf.is_emergency_save()
            else:
                for _ in range(num_steps):
                    work()
            seconds = time.perf_counter() - began_s
            connection.send((seconds, time.process_time() - time.thread_time() - others_s))


def time_calls(num_steps: int) -> float:
    began_s = time.perf_counter()
    for _ in range(num_steps):
        with pf.train_step():
            pf.metric({"loss": 0.5, "accuracy": 0.25})
        pf.is_emergency_save()
    return (time.perf_counter() - began_s) / num_steps


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
