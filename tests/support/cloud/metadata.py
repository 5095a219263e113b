"""The metadata service of one virtual machine of EC2: ``python -m support.cloud.metadata FOLDER``.

Its notice is what the folder's file ``interruption`` says at that moment.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from support.metadata_servers import FakeAws, Reply, serve_metadata

ENDPOINT = "http://169.254.169.254:80"


@dataclass
class FolderAws(FakeAws):
    """Reads its notice when it is asked."""

    folder: Path = field(default_factory=Path)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        notice = self.folder / "interruption"
        self.interruption = notice.read_text() if notice.exists() else None
        return super().reply(method, path, headers, body)


def main() -> None:
    """Serve until the machine ends."""
    with serve_metadata(FolderAws(endpoint=ENDPOINT, folder=Path(sys.argv[1]))):
        threading.Event().wait()


if __name__ == "__main__":
    main()
