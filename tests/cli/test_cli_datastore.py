from __future__ import annotations

import json

import pytest

from periflow_ray.store.datasets import list_dataset_files, list_datasets, read_dataset


def test_the_list_is_a_table(run_cli, sample_root):
    assert (
        run_cli("datastore", "list").stdout
        == """\
┏━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━┓
┃ Name         ┃ Cloud ┃ Region ┃ Storage Name ┃ Active ┃
┡━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━┩
│ my-cifar-100 │ local │ -      │ -            │ Y      │
└──────────────┴───────┴────────┴──────────────┴────────┘
"""
    )


def test_view_shows_overview_file_tree_and_metadata(run_cli, sample_root):
    result = run_cli("dataset", "view", "my-cifar-100")
    assert (result.exit_code, result.stdout) == (
        0,
        """\
╭────────── Overview ──────────╮
│  Name          my-cifar-100  │
│  Cloud         local         │
│  Region        -             │
│  Storage Name  -             │
│  Active        Y             │
╰──────────────────────────────╯
╭───────── Files ─────────╮
│ /                       │
│ └── 📂 cifar-100-python │
│     ├── 📂 nested       │
│     │   └── extra (1 B) │
│     ├── meta (12 B)     │
│     └── train (1.5 kB)  │
╰─────────────────────────╯
╭──── Metadata ────╮
│ {                │
│   "classes": 100 │
│ }                │
╰──────────────────╯
""",
    )


def test_view_for_programs_lists_every_file(run_cli, sample_root):
    document = json.loads(run_cli("datastore", "view", "my-cifar-100", "-o", "json").stdout)
    assert document["files"] == [
        {"path": "cifar-100-python/meta", "size_bytes": 12},
        {"path": "cifar-100-python/nested/extra", "size_bytes": 1},
        {"path": "cifar-100-python/train", "size_bytes": 1500},
    ]
    assert document["metadata"] == {"classes": 100}
    assert (document["name"], document["cloud"], document["is_linked"]) == ("my-cifar-100", "local", False)


@pytest.mark.parametrize(("slash", "files"), [("", {"cifar/train": 5}), ("/", {"train": 5})])
def test_a_trailing_slash_uploads_the_contents_only(run_cli, root, tmp_path, slash, files):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "train").write_bytes(b"bytes")
    result = run_cli("datastore", "upload", "-n", "small", "-p", f"{tmp_path}/cifar{slash}")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "Dataset 'small' is uploaded: 1 files, 5 B.\n"
    assert list_dataset_files(root, read_dataset(root, "small")) == files


def test_create_links_a_directory_with_metadata(run_cli, root, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_bytes(b"cat")
    (tmp_path / "metadata.json").write_text('{"classes": 2}')
    path = str(tmp_path / "images")
    result = run_cli(
        *("datastore", "create", "-n", "pets", "-c", "local", "-p", path, "-f", str(tmp_path / "metadata.json"))
    )
    assert (result.exit_code, result.stderr) == (0, f"Dataset 'pets' is linked to {path}.\n")
    dataset = read_dataset(root, "pets")
    assert (dataset.uri, dataset.is_linked, dataset.metadata) == (path, True, {"classes": 2})
    assert list_dataset_files(root, dataset) == {"cat.png": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "aws", "-p", "x"], "--storage-name: give the bucket or container on aws."),
        (["-c", "local"], "--storage-path: give the directory that holds the files."),
    ],
)
def test_create_says_what_is_missing(run_cli, root, options, message):
    result = run_cli("datastore", "create", "-n", "pets", *options)
    assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")


@pytest.mark.parametrize("content", ["not json", "[1]"])
def test_metadata_must_be_a_json_object(run_cli, root, tmp_path, content):
    path = tmp_path / "metadata.json"
    path.write_text(content)
    result = run_cli("datastore", "create", "-n", "pets", "-c", "local", "-p", str(tmp_path), "-f", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path}")
    assert list_datasets(root) == []


def test_delete_asks_and_says_what_becomes_of_the_files(run_cli, sample_root):
    result = run_cli("datastore", "delete", "my-cifar-100", input="n\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("Delete dataset 'my-cifar-100'? Its files are deleted. [y/N]: ")
    assert run_cli("datastore", "delete", "my-cifar-100", "--yes").exit_code == 0
    assert list_datasets(sample_root) == []


def test_an_unknown_dataset_is_an_error(run_cli, root):
    assert run_cli("datastore", "view", "nothing").exit_code == 1
    assert run_cli("datastore", "delete", "nothing", "-y").exit_code == 1
