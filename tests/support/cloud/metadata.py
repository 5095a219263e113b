"""The metadata service of one virtual machine: ``python -m support.cloud.metadata aws|azure FOLDER``.

What it says of notices is in the folder's files at that moment: ``interruption`` on AWS, ``events`` and ``name`` on
Azure, whose acknowledgements go to ``started``.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from support.metadata_servers import FakeAws, FakeAzure, Reply, serve_metadata

ENDPOINT = "http://169.254.169.254:80"


@dataclass
class FolderAws(FakeAws):
    """EC2's."""

    folder: Path = field(default_factory=Path)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        notice = self.folder / "interruption"
        self.interruption = notice.read_text() if notice.exists() else None
        return super().reply(method, path, headers, body)


@dataclass
class FolderAzure(FakeAzure):
    """Azure's."""

    folder: Path = field(default_factory=Path)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        notice = self.folder / "events"
        self.events = json.loads(notice.read_text()) if notice.exists() else []
        self.vm_name = (self.folder / "name").read_text()
        answer = super().reply(method, path, headers, body)
        (self.folder / "started").write_text(json.dumps(self.started))
        return answer


def main() -> None:
    """Serve until the machine ends."""
    kind = {"aws": FolderAws, "azure": FolderAzure}[sys.argv[1]]
    with serve_metadata(kind(endpoint=ENDPOINT, folder=Path(sys.argv[2]))):
        threading.Event().wait()


if __name__ == "__main__":
    main()
