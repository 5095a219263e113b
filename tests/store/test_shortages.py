"""What is used up on a machine is said with what to do about it."""

from __future__ import annotations

import errno
import os
import re
import resource

from periflow_ray.errors import StorageError
from periflow_ray.store.shortages import describe_error


def test_a_full_disk_is_told_with_its_free_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    size = r"[\d.]+ k?[MGTP]?B"
    words = (
        rf".*: the disk of '{re.escape(str(tmp_path))}(/gone)?' has {size}, of which {size} are free now\. Free some;"
    )
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(tmp_path)),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{tmp_path}/gone"),
    ):
        assert re.match(words, describe_error(error)), describe_error(error)


def test_a_limit_of_open_files_is_found_below_the_error_that_it_caused():
    error = StorageError("cannot read 'x'")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert describe_error(error) == (
        f"cannot read 'x': a process may open {limit} files. Raise it where Ray is started: ulimit -n 65536"
    )


def test_other_errors_say_what_they_say():
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "/x"), StorageError("no connection")):
        assert describe_error(error) == str(error)
