from __future__ import annotations

import json

import pytest
from rich.console import Console

from periflow_ray.cli.file_tree import build_file_tree
from periflow_ray.errors import UsageError
from periflow_ray.store.datasets import (
    link_dataset,
    list_dataset_files,
    list_datasets,
    list_unfinished_uploads,
    read_dataset,
    upload_dataset,
)


def sizes_of(root, name: str) -> dict[str, int]:
    return {file.path: file.size for file in list_dataset_files(root, read_dataset(root, name))}


def fail_to_upload(root, name, source) -> None:
    """An upload whose source changes while it runs."""
    with pytest.raises(UsageError):
        upload_dataset(
            root, name, source, contents_only=True, on_progress=lambda *step: (source / "train").write_text("changed")
        )


def draw_tree(sizes: dict[str, int]) -> list[str]:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(build_file_tree("/", sizes, max_lines=200))
    return captured.get().splitlines()


def test_the_list_is_a_table(run_cli, sample_root):
    assert (
        run_cli("datastore", "list").stdout
        == """\
┏━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━┳━━━━━━━━┓
┃ Name         ┃ Cloud ┃ Region ┃ Storage Name ┃ Active ┃ Files ┃ Size   ┃
┡━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━╇━━━━━━━━┩
│ my-cifar-100 │ local │ -      │ -            │ Y      │ 3     │ 1.5 kB │
└──────────────┴───────┴────────┴──────────────┴────────┴───────┴────────┘
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
│  Files         3             │
│  Size          1.5 kB        │
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
    assert (document["num_files"], document["size_bytes"]) == (3, 1513)


@pytest.mark.parametrize(("slash", "files"), [("", {"cifar/train": 5}), ("/", {"train": 5})])
def test_a_trailing_slash_uploads_the_contents_only(run_cli, root, tmp_path, slash, files):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "train").write_bytes(b"bytes")
    result = run_cli("datastore", "upload", "-n", "small", "-p", f"{tmp_path}/cifar{slash}")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "Dataset 'small' is uploaded: 1 files, 5 B.\n"
    assert sizes_of(root, "small") == files


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
    assert sizes_of(root, "pets") == {"cat.png": 3}


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


def test_a_linked_bucket_shows_its_cloud_region_and_name(run_cli, root):
    # Known by the file alone: listing asks no cloud.
    root.write_json(
        "datasets/imagenet/dataset.json",
        {
            "name": "imagenet",
            "uri": "s3://my-bucket/imagenet/2012",
            "created_unix_s": 1_767_225_600.0,
            "is_linked": True,
            "region": "us-east-2",
            "credential": "team-s3",
        },
    )
    assert json.loads(run_cli("datastore", "list", "-o", "json").stdout) == [
        {
            "name": "imagenet",
            "cloud": "aws",
            "storage_name": "my-bucket",
            "region": "us-east-2",
            "is_active": True,
            "is_linked": True,
            "uri": "s3://my-bucket/imagenet/2012",
            "credential": "team-s3",
            "num_files": None,
            "size_bytes": None,
            "created": "2026-01-01T00:00:00.000+00:00",
        }
    ]


def test_create_with_a_credential_that_does_not_exist_is_an_error(run_cli, root, tmp_path, monkeypatch):
    monkeypatch.setenv("PERIFLOW_CREDENTIALS_FILE", str(tmp_path / "credentials.json"))
    result = run_cli("datastore", "create", "-n", "pets", "-c", "aws", "-s", "bucket", "--credential", "team-s3")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: credential 'team-s3' does not exist")
    assert list_datasets(root) == []


def test_an_upload_that_was_cut_short_is_listed_as_not_active_until_it_is_deleted(run_cli, root, tmp_path):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "train").write_bytes(b"bytes")
    fail_to_upload(root, "small", tmp_path / "cifar")
    (listed,) = json.loads(run_cli("datastore", "list", "-o", "json").stdout)
    assert (listed["name"], listed["is_active"]) == ("small", False)
    assert run_cli("datastore", "view", "small").exit_code == 1
    result = run_cli("datastore", "delete", "small", "-y")
    assert (result.exit_code, result.stderr) == (0, "Dataset 'small' is deleted.\n")
    assert list_unfinished_uploads(root) == []


def test_an_upload_that_was_cut_short_goes_on_when_it_is_run_again(run_cli, root, tmp_path):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "train").write_bytes(b"bytes")
    fail_to_upload(root, "small", tmp_path / "cifar")
    result = run_cli("datastore", "upload", "-n", "small", "-p", f"{tmp_path}/cifar/")
    assert (result.exit_code, result.stderr) == (0, "Dataset 'small' is uploaded: 1 files, 7 B.\n")
    assert sizes_of(root, "small") == {"train": 7}


def test_edit_changes_name_and_metadata(run_cli, sample_root, tmp_path):
    (tmp_path / "metadata.json").write_text('{"license": "MIT"}')
    result = run_cli("datastore", "edit", "my-cifar-100", "-n", "cifar", "-f", str(tmp_path / "metadata.json"))
    assert (result.exit_code, result.stderr) == (0, "Dataset 'my-cifar-100' is changed and is now 'cifar'.\n")
    (dataset,) = list_datasets(sample_root)
    assert (dataset.name, dataset.metadata, dataset.num_files) == ("cifar", {"license": "MIT"}, 3)


def test_edit_without_a_change_is_an_error(run_cli, sample_root):
    result = run_cli("datastore", "edit", "my-cifar-100")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: nothing to change: give --name, --metadata-file, --region or --credential.\n",
    )


def test_a_large_dataset_is_shown_with_its_deep_folders_folded():
    sizes = {f"train/class-{number % 40:02}/{number:04}.jpg": 1000 for number in range(1000)}
    sizes["README"] = 5
    lines = draw_tree(sizes)
    assert lines[:3] == ["/", "├── 📂 train", "│   ├── 📂 class-00 (25 files, 25.0 kB)"]
    assert lines[-2:] == ["│   └── 📂 class-39 (25 files, 25.0 kB)", "└── README (5 B)"]
    assert len(lines) == 43


def test_a_folder_with_very_many_entries_is_cut_with_a_count():
    lines = draw_tree({f"{number:04}.jpg": 1000 for number in range(1200)})
    assert lines[50:] == ["├── 0049.jpg (1.0 kB)", "└── … 1,150 more files (1.1 MB)"]
    lines = draw_tree({f"class-{number:04}/0.jpg": 1000 for number in range(1200)})
    assert (len(lines), lines[-1]) == (102, "└── … 1,150 more folders (1,150 files, 1.1 MB)")


def test_delete_says_that_linked_files_stay(run_cli, root, tmp_path):
    (tmp_path / "images").mkdir()
    link_dataset(root, "pets", str(tmp_path / "images"))
    result = run_cli("datastore", "delete", "pets", input="y\n")
    assert result.stderr.startswith(f"Delete dataset 'pets'? Its files at {tmp_path}/images stay. [y/N]: ")
    assert (list_datasets(root), (tmp_path / "images").is_dir()) == ([], True)


def test_delete_asks_and_says_what_becomes_of_the_files(run_cli, sample_root):
    result = run_cli("datastore", "delete", "my-cifar-100", input="n\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("Delete dataset 'my-cifar-100'? Its files are deleted. [y/N]: ")
    assert run_cli("datastore", "delete", "my-cifar-100", "--yes").exit_code == 0
    assert list_datasets(sample_root) == []


def test_an_unknown_dataset_is_an_error(run_cli, root):
    assert run_cli("datastore", "view", "nothing").exit_code == 1
    assert run_cli("datastore", "delete", "nothing", "-y").exit_code == 1
