"""What the providers of the box share: machines that are what an API says of them, and the lines of a test.

A provider takes one JSON object a line and answers each with one. All of them know these:
    {"do": "machines"}                              every machine that the API knows, in any state
    {"do": "fail", "match": [TEXT...], "code": C, "num_times": N}
                                                    the next calls that have all these texts fail
    {"do": "heal"}                                  no call fails any more
    {"do": "quota", "code": C, "vcpus": N}          the account may have this many vCPUs of a kind; 1,000 by default
    {"do": "notice", "instance": ID, "notice_s": S} its metadata service announces that the cloud takes it back
    {"do": "lose", "instance": ID}                  it loses its power, and the API says that spot took it
    {"do": "log", "instance": ID}                   what its console shows
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.cloud.virtual_machines import VirtualMachine, prepare_network

_POLL_S = 0.3


class Provider:
    """Keeps the virtual machines what an API says they are; each cloud has a subclass.

    A machine that is started again has a new disk.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._machines: dict[str, VirtualMachine] = {}
        self._lock = threading.Lock()

    def start_api(self) -> None:
        """Answer the cloud's clients from now on, in threads of its own."""
        raise NotImplementedError

    def find_wanted(self) -> Mapping[str, Any]:
        """The machines that are to have power, by id, as the API describes them."""
        raise NotImplementedError

    def boot(self, machine_id: str, description: Any) -> VirtualMachine:
        """Give a machine power; ``description`` is what ``find_wanted`` said of it."""
        raise NotImplementedError

    def serve(self) -> None:
        """Answer the API and the lines of standard input until that ends; then every machine does."""
        prepare_network()
        self.start_api()
        threading.Thread(target=self._keep_machines, daemon=True).start()
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                question = json.loads(line)
                answer = getattr(self, f"_do_{question.pop('do')}")(**question)
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), flush=True)
        with self._lock:
            for machine in self._machines.values():
                machine.end()
        os._exit(0)

    def take_power(self, machine_id: str, tell_api: Callable[[], object]) -> None:
        """End a machine at once, and only then let the API say so."""
        with self._lock:
            self._machines.pop(machine_id).end()
            tell_api()

    def _keep_machines(self) -> None:
        while True:
            time.sleep(_POLL_S)
            with self._lock:
                try:
                    self._adjust()
                except Exception:
                    traceback.print_exc()

    def _adjust(self) -> None:
        wanted = self.find_wanted()
        for machine_id in self._machines.keys() - wanted.keys():
            self._machines.pop(machine_id).end()
        for machine_id in wanted.keys() - self._machines.keys():
            self._machines[machine_id] = self.boot(machine_id, wanted[machine_id])

    def _do_log(self, instance: str) -> str:
        return self._machines[instance].read_log()


def write_bashrc(**variables: str) -> str:
    """What a node's shell has: the image's Python, and the cloud's own variables."""
    python_dir = Path(sys.executable).parent
    # Ray would start a process for each of the CPUs that an instance type has.
    own = {"PERIFLOW_PYTHON": sys.executable, "RAY_prestart_worker_first_driver": "0", **variables}
    return "".join(f"export {name}={value}\n" for name, value in own.items()) + f"export PATH={python_dir}:$PATH\n"
