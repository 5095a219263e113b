"""A kind of storage is one class and one row; its contract is tested with that of the others (``any_root``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.drawers import PART_BYTES, DrawerBackend, DrawerError, drawers

from periflow_ray.cli.datastore import _describe_uri
from periflow_ray.errors import StorageError, UsageError
from periflow_ray.settings import choose_root
from periflow_ray.store.backends import BACKENDS, clouds
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import download_file, upload_file


@pytest.fixture
def backend() -> Iterator[DrawerBackend]:
    with drawers() as backend:
        yield backend


def test_its_scheme_is_known_as_long_as_its_row_is_there(backend):
    assert StorageRoot("drawer://cupboard/a").backend is backend
    del BACKENDS["drawer"]
    with pytest.raises(StorageError) as caught:
        StorageRoot("drawer://cupboard/a")
    assert "scheme 'drawer' is unknown" in str(caught.value)
    BACKENDS["drawer"] = backend


def test_commands_and_settings_learn_of_it_from_the_row(backend):
    assert clouds()["cupboard"] is backend
    assert _describe_uri("drawer://cupboard/a") == {"cloud": "cupboard", "storage_name": "cupboard"}
    with pytest.raises(UsageError) as caught:
        choose_root("drawer://cupboard/a", "team")
    assert str(caught.value) == (
        "storage root 'drawer://cupboard/a' needs no credential; leave --storage-credential team out."
    )


def test_large_files_go_through_its_own_parts(backend, tmp_path):
    source, target = tmp_path / "model.pt", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (PART_BYTES // 256 + 1))
    root = StorageRoot("drawer://cupboard/a")
    upload_file(root, source, "model.pt")
    download_file(root, "model.pt", target)
    assert backend.num_part_uploads == [1]
    assert target.read_bytes() == source.read_bytes()


def test_its_error_codes_are_tried_again_or_told_in_plain_words(backend):
    waiting = [DrawerError("Stuck"), DrawerError("WrongKey")]

    def fail() -> None:
        raise waiting.pop(0)

    with pytest.raises(StorageError) as caught:
        StorageRoot("drawer://cupboard/a").operations.run("key", fail)
    assert str(caught.value) == (
        "'key' in storage root 'drawer://cupboard/a': the credential is not accepted (WrongKey)"
    )
    assert waiting == []
