from __future__ import annotations

import json

import pytest
from support.sample_checkpoints import ID, NODES, write_sample_checkpoints
from support.trees import read_tree, write_tree

from periflow_ray.jobs.checkpoint_status import list_all
from periflow_ray.store.checkpoints import checkpoint_key, latest_committed


@pytest.fixture
def saved_root(sample_root, tmp_path):
    """The storage root with the sample jobs and checkpoints."""
    write_sample_checkpoints(sample_root, tmp_path)
    return sample_root


@pytest.mark.parametrize(("options", "rng"), [([], b"0"), (["--node", "1"], b"1"), (["--node", "7"], b"0")])
def test_a_download_has_the_files_as_a_node_had_them(run_cli, saved_root, tmp_path, options, rng):
    target = tmp_path / "downloads" / "resnet"
    result = run_cli("checkpoint", "download", ID, "-d", str(target), *options)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"Checkpoint '{ID}' is downloaded to '{target}': 3 files, 1.5 kB, verified.\n"
    assert read_tree(tmp_path / "downloads") == {
        "resnet/model.pt": b"w" * 1500,
        "resnet/shards/0.pt": b"shard",
        "resnet/rng": rng,
    }


def test_a_download_goes_to_a_directory_of_its_name_by_default(run_cli, saved_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("checkpoint", "download", "2").exit_code == 0
    assert read_tree(tmp_path / "step-00000400") == NODES[0]
    again = run_cli("checkpoint", "download", "2")
    assert (again.exit_code, again.stderr) == (
        0,
        f"Checkpoint '{ID}' is in 'step-00000400' already: 3 files, 1.5 kB, verified.\n",
    )


@pytest.mark.parametrize("contents", [{"notes.txt": b"mine"}, {**NODES[0], "notes.txt": b"mine"}, {"model.pt": b"w"}])
def test_a_download_does_not_overwrite_what_is_something_else(run_cli, saved_root, tmp_path, contents):
    target = write_tree(tmp_path / "resnet", contents)
    result = run_cli("checkpoint", "download", ID, "-d", str(target))
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: '{target}' is not empty and holds something else than this checkpoint. Give another directory: "
        "-d DIR\n",
    )
    assert read_tree(target) == contents


def test_a_download_needs_a_directory_of_its_own(run_cli, saved_root, tmp_path, monkeypatch):
    monkeypatch.chdir(write_tree(tmp_path / "here", {"file": b""}))
    assert run_cli("checkpoint", "download", ID, "-d", "file").exit_code == 2
    assert run_cli("checkpoint", "download", ID, "-d", ".").exit_code == 2
    assert read_tree(tmp_path / "here") == {"file": b""}


def test_a_damaged_checkpoint_is_not_downloaded(run_cli, saved_root, tmp_path):
    saved_root.write_bytes(checkpoint_key(2, "step-00000400", "files", "rng"), b"00")
    result = run_cli("checkpoint", "download", ID, "-d", str(tmp_path / "downloads" / "resnet"))
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: checkpoint {ID} is damaged: 'files/rng' has 2 bytes, 1 in the manifest\n",
    )
    assert read_tree(tmp_path / "downloads") == {}


def test_a_directory_is_uploaded_and_its_name_is_its_id(run_cli, root, tmp_path):
    source = write_tree(tmp_path / "resnet", NODES[0])
    result = run_cli("checkpoint", "upload", "-n", "resnet-base", "-p", str(source), "--step", "90")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "Checkpoint 'resnet-base' is uploaded: 3 files, 1.5 kB.\n"
    (document,) = json.loads(run_cli("checkpoint", "list", "-o", "json").stdout)
    assert (document["id"], document["job"], document["step"]) == ("resnet-base", None, 90)
    assert run_cli("checkpoint", "download", "resnet-base", "-d", str(tmp_path / "copy")).exit_code == 0
    assert read_tree(tmp_path / "copy") == NODES[0]


def test_files_that_stay_where_they_are_are_linked(run_cli, root, tmp_path):
    source = write_tree(tmp_path / "resnet", NODES[0])
    result = run_cli("checkpoint", "create", "-n", "resnet-base", "-u", str(source))
    assert result.exit_code == 0
    assert result.stderr.endswith(f"Checkpoint 'resnet-base' is linked to {source}: 3 files, 1.5 kB.\n")
    assert f"│  Linked to   {source}" in run_cli("checkpoint", "view", "resnet-base").stdout
    assert run_cli("checkpoint", "verify", "resnet-base").exit_code == 0
    question = run_cli("checkpoint", "delete", "resnet-base", input="n\n").stderr
    assert question.startswith(f"Delete checkpoint 'resnet-base'? Its files at {source} stay. [y/N]: ")


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["upload", "-n", "12", "-p", "."], 2, "checkpoint name '12' cannot be used: letters, digits, "),
        (["upload", "-n", "resnet", "-p", "nothing"], 2, "'nothing' is not a directory. "),
        (["create", "-n", "a/b", "-u", "."], 2, "checkpoint name 'a/b' cannot be used: letters, digits, "),
        (["create", "-n", "resnet", "-u", "/nothing/there"], 1, "there are no files at '/nothing/there'"),
        (["create", "-n", "resnet", "-u", "ftq://x"], 1, "storage root 'ftq://x' cannot be opened: "),
    ],
)
def test_a_checkpoint_that_cannot_be_made_is_an_error(run_cli, root, words, exit_code, message):
    result = run_cli("checkpoint", *words)
    assert result.exit_code == exit_code
    assert result.stderr.splitlines()[-1].startswith(f"Error: {message}")
    assert list_all(root, None) == []


def test_verify_says_that_a_checkpoint_is_intact(run_cli, saved_root):
    result = run_cli("checkpoint", "verify", "2")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        f"Checkpoint '{ID}' is intact: 4 files, 1.5 kB.\n",
        "",
    )


def test_verify_lists_every_problem_and_fails(run_cli, saved_root):
    saved_root.write_bytes(checkpoint_key(2, "step-00000400", "files", "rng"), b"00")
    saved_root.delete(checkpoint_key(2, "step-00000400", "node-1", "rng"))
    result = run_cli("checkpoint", "verify", ID)
    assert result.exit_code == 1
    assert result.stderr == f"Error: checkpoint '{ID}' is not what was saved; see the files above\n"
    assert (
        result.stdout
        == """\
┏━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ File       ┃ Problem                        ┃
┡━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ files/rng  │ has 2 bytes, 1 in the manifest │
│ node-1/rng │ is missing                     │
└────────────┴────────────────────────────────┘
"""
    )
    document = json.loads(run_cli("checkpoint", "verify", ID, "-o", "json").stdout)
    assert document == {
        "id": ID,
        "is_intact": False,
        "num_files": 4,
        "size_bytes": 1507,
        "problems": [
            {"file": "files/rng", "problem": "has 2 bytes, 1 in the manifest"},
            {"file": "node-1/rng", "problem": "is missing"},
        ],
    }


def test_what_verify_finds_counts_for_everybody_until_the_checkpoint_is_intact_again(run_cli, saved_root):
    key = checkpoint_key(2, "step-00000400", "files", "rng")
    content = saved_root.read_bytes(key)
    saved_root.write_bytes(key, b"00")
    assert run_cli("checkpoint", "verify", ID).exit_code == 1
    assert latest_committed(saved_root, 2) is None
    (row,) = [row for row in json.loads(run_cli("checkpoint", "list", "-o", "json").stdout) if row["id"] == ID]
    assert row["status"] == "damaged"
    refused = run_cli("checkpoint", "download", ID)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"Error: checkpoint '{ID}' is damaged, and not used any more.")
    assert run_cli("checkpoint", "verify", ID).exit_code == 1

    saved_root.write_bytes(key, content)
    assert run_cli("checkpoint", "verify", ID).exit_code == 0
    newest = latest_committed(saved_root, 2)
    assert newest is not None
    assert newest.checkpoint_id == ID


def test_a_damaged_checkpoint_can_be_deleted(run_cli, saved_root):
    saved_root.write_bytes(checkpoint_key(2, "step-00000400", "files", "rng"), b"00")
    run_cli("checkpoint", "verify", ID)
    assert run_cli("checkpoint", "delete", ID, "--yes").exit_code == 0
    assert saved_root.list_files(checkpoint_key(2, "step-00000400")) == {}
