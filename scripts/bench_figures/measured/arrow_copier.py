"""Copies a directory with pyarrow: asked ``SOURCE TARGET_URI`` it answers with the seconds that took.

On this machine the copy is made durable, one file after the other, as ``upload_checkpoint()`` makes its own.
"""

from __future__ import annotations

import os
import sys
import time

import pyarrow.fs


def main() -> None:
    local = pyarrow.fs.LocalFileSystem()
    print("ready", flush=True)
    for question in sys.stdin:
        source, target_uri = question.split()
        filesystem, target = open_target(target_uri)
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            filesystem.create_dir(target)
        began_s = time.monotonic()
        pyarrow.fs.copy_files(source, target, source_filesystem=local, destination_filesystem=filesystem)
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            sync_tree(target)
        print(time.monotonic() - began_s, flush=True)


def sync_tree(directory: str) -> None:
    for parent, _, names in os.walk(directory):
        for path in (*(os.path.join(parent, name) for name in names), parent):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def open_target(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    if not uri.startswith("s3://"):
        return pyarrow.fs.LocalFileSystem(), uri
    # Named, because not every version of Arrow reads AWS_ENDPOINT_URL.
    return pyarrow.fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"]), uri.removeprefix("s3://")


if __name__ == "__main__":
    main()
