from __future__ import annotations

import pytest

from periflow_ray.errors import StorageError
from periflow_ray.store.checksum import checksum_bytes, checksum_file, is_checksum_of


@pytest.mark.parametrize(
    ("content", "checksum"),
    [
        # The values of the XXH3 specification's reference implementation for these inputs.
        (b"", "xxh3_128:99aa06d3014798d86001c324468d497f"),
        (b"abc", "xxh3_128:06b05ab6733a618578af5f94892f3950"),
    ],
)
def test_a_checksum_names_its_kind_and_the_content(tmp_path, content, checksum):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert checksum_file(path) == checksum
    assert checksum_bytes(content) == checksum


def test_a_file_that_is_read_in_many_pieces_has_the_checksum_of_the_whole(tmp_path):
    content = bytes(range(256)) * 20_000
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert checksum_file(path) == checksum_bytes(content)


def test_one_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    checksum = checksum_file(path)
    assert is_checksum_of(path, checksum) is True
    path.write_bytes(b"weighty")
    assert is_checksum_of(path, checksum) is False


def test_a_checksum_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        is_checksum_of(path, "sha256:e3b0c442")
    assert str(caught.value) == "checksum 'sha256:e3b0c442' is not of a known kind: it must start with 'xxh3_128:'"
