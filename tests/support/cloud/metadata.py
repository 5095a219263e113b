"""The metadata service of one virtual machine: ``python -m support.cloud.metadata CLOUD FOLDER``.

Its notice is what the folder's file ``notice`` says at that moment: on AWS the document, on Azure the time.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from support.metadata_servers import FakeAws, FakeAzure, Reply, serve_metadata

ENDPOINT = "http://169.254.169.254:80"
NOTICE, ACKNOWLEDGED, VM = "notice", "acknowledged", "vm.json"
_TOKEN_LIFE_S = 86_399


@dataclass
class FolderAws(FakeAws):
    """Reads its notice when it is asked."""

    folder: Path = field(default_factory=Path)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        notice = self.folder / NOTICE
        self.interruption = notice.read_text() if notice.exists() else None
        return super().reply(method, path, headers, body)


@dataclass
class FolderAzure(FakeAzure):
    """Reads its notice when it is asked, and knows the VM's managed identity.

    ``vm.json`` has what the VM is, and the token of its identity or None. An acknowledged notice is written down.
    """

    folder: Path = field(default_factory=Path)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        vm = json.loads((self.folder / VM).read_text())
        self.vm_name, self.events = vm["name"], []
        notice = self.folder / NOTICE
        if notice.exists():
            self.announce("Preempt", "event-1", not_before=notice.read_text())
        has_header = headers.get("metadata") == "true"
        if has_header and path.startswith("/metadata/identity/oauth2/token?"):
            return _describe_token(vm["token"])
        if has_header and path.startswith("/metadata/instance?"):
            compute = {key: vm[key] for key in ("name", "location", "vmSize", "subscriptionId", "resourceGroupName")}
            return 200, json.dumps({"compute": compute}), {"Content-Type": "application/json"}
        answer = super().reply(method, path, headers, body)
        if self.started:
            (self.folder / ACKNOWLEDGED).touch()
        return answer


def _describe_token(token: str | None) -> Reply:
    if token is None:
        error = {"error": "invalid_request", "error_description": "Identity not found"}
        return 400, json.dumps(error), {"Content-Type": "application/json"}
    document = {
        "access_token": token,
        "expires_in": str(_TOKEN_LIFE_S),
        "expires_on": str(int(time.time()) + _TOKEN_LIFE_S),
        "resource": "https://management.azure.com/",
        "token_type": "Bearer",
    }
    return 200, json.dumps(document), {"Content-Type": "application/json"}


def main() -> None:
    """Serve until the machine ends."""
    cloud, folder = sys.argv[1:]
    service = {"aws": FolderAws, "azure": FolderAzure}[cloud]
    with serve_metadata(service(endpoint=ENDPOINT, folder=Path(folder))):
        threading.Event().wait()


if __name__ == "__main__":
    main()
