from __future__ import annotations

import json

import pytest
from support.sample_checkpoints import ID, write_sample_checkpoints
from support.sample_jobs import NEW_YEAR_UNIX_S

from periflow_ray.jobs.checkpoint_status import find_entry, list_all
from periflow_ray.store.checkpoints import find_checkpoint
from periflow_ray.store.checkpoints.trash import purge, trash


@pytest.fixture
def saved_root(sample_root, tmp_path):
    """The storage root with the sample jobs and checkpoints."""
    write_sample_checkpoints(sample_root, tmp_path)
    return sample_root


LIST = """\
┏━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━┳━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ ID              ┃ Status    ┃ Step ┃ Size   ┃ Files ┃ Created             ┃ Metrics                             ┃
┡━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━╇━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ 2/step-00000400 │ committed │ 400  │ 1.5 kB │ 4     │ 2026-01-01 00:00:00 │ loss 0.512346, acc 0.9, lr 0.001, … │
└─────────────────┴───────────┴──────┴────────┴───────┴─────────────────────┴─────────────────────────────────────┘
"""

VIEW = """\
╭─────────────────────── Overview ────────────────────────╮
│  ID          2/step-00000400                            │
│  Status      committed                                  │
│  Step        400                                        │
│  Attempt     1                                          │
│  World size  4                                          │
│  Nodes       2                                          │
│  Size        1.5 kB                                     │
│  Files       4                                          │
│  Created     2026-01-01 00:00:00                        │
│  Created by  kim                                        │
│  Metrics     loss 0.512346, acc 0.9, lr 0.001, epoch 3  │
╰─────────────────────────────────────────────────────────╯
╭──────── Files ────────╮
│ /                     │
│ ├── 📂 node-1         │
│ │   └── rng (1 B)     │
│ ├── 📂 shards         │
│ │   └── 0.pt (5 B)    │
│ ├── model.pt (1.5 kB) │
│ └── rng (1 B)         │
╰───────────────────────╯
"""


def test_the_list_is_a_table(run_cli, saved_root):
    result = run_cli("checkpoint", "list", "--job", "2")
    assert (result.exit_code, result.stdout, result.stderr) == (0, LIST, "")


def test_the_list_hides_what_cannot_be_resumed_from_until_it_is_asked_for(run_cli, saved_root):
    result = run_cli("checkpoint", "list", "-o", "json")
    shown = [(entry["id"], entry["status"]) for entry in json.loads(result.stdout)]
    assert shown == [
        ("3/step-00000007", "uploading"),
        ("2/step-00000400", "committed"),
        ("1/step-00000020", "committed"),
        ("1/step-00000010", "committed"),
    ]
    assert result.stderr == "1 partial or deleted ones are not shown. With them: --all\n"
    until_unix_s = trash(saved_root, "1/step-00000010", keep_s=3600)
    result = run_cli("checkpoint", "list", "--job", "1", "--all", "-o", "json")
    partial, _, deleted = json.loads(result.stdout)
    assert result.stderr == ""
    assert partial == {
        "id": "1/step-00000030",
        "job": 1,
        "status": "partial",
        "step": 30,
        "size_bytes": None,
        "num_files": None,
        "created": None,
        "metrics": None,
        "reason": "the job ended before it was committed",
        "restorable_until": None,
    }
    assert (deleted["status"], deleted["size_bytes"]) == ("deleted", 31_000_010)
    assert find_entry(saved_root, "1/step-00000010").restorable_until_unix_s == until_unix_s
    lines = run_cli("checkpoint", "list", "--job", "1", "--all").stdout.splitlines()
    assert "│ undelete until 20" in lines[5]
    assert lines[3].endswith("│ the job ended before it was committed │")
    result = run_cli("checkpoint", "list", "--limit", "1")
    assert "3/step-00000007" in result.stdout
    assert "1/step" not in result.stdout
    assert result.stderr.startswith("2 older ones are not shown. All of them: --all\n")


def test_listing_deletes_the_files_of_what_cannot_be_undeleted_any_more(run_cli, saved_root):
    trash(saved_root, ID, keep_s=0)
    assert run_cli("checkpoint", "list", "--job", "2", "--all", "-o", "json").stdout == "[]\n"
    assert saved_root.list_files("jobs/2/checkpoints") == {}


def test_view_shows_overview_and_files_of_all_nodes(run_cli, saved_root):
    # The number of a job is its latest checkpoint.
    for checkpoint_id in (ID, "2"):
        result = run_cli("checkpoint", "view", checkpoint_id)
        assert (result.exit_code, result.stdout, result.stderr) == (0, VIEW, "")


def test_view_for_programs_has_every_file_with_its_checksum(run_cli, saved_root):
    document = json.loads(run_cli("checkpoint", "view", ID, "-o", "json").stdout)
    manifest = find_checkpoint(saved_root, ID)
    assert document["files"][-1] == {
        "path": "rng",
        "size_bytes": 1,
        "checksum": manifest.files[-1].checksum,
        "node_rank": 1,
        "key": "node-1/rng",
    }
    assert (document["status"], document["attempt"], document["world_size"]) == ("committed", 1, 4)
    assert document["created_by"] == "kim"


def test_view_shows_links(run_cli, saved_root, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "step-5.pt").write_text("weights")
    (tmp_path / "model" / "latest.pt").symlink_to("step-5.pt")
    assert run_cli("checkpoint", "upload", "-n", "linked", "-p", str(tmp_path / "model")).exit_code == 0
    assert "│  latest.pt  step-5.pt  │" in run_cli("checkpoint", "view", "linked").stdout
    document = json.loads(run_cli("checkpoint", "view", "linked", "-o", "json").stdout)
    assert document["links"] == [{"path": "latest.pt", "link_to": "step-5.pt", "node_rank": 0}]


def test_view_says_why_a_checkpoint_is_partial(run_cli, saved_root):
    assert (
        "│  Reason   the job ended before it was committed  │"
        in run_cli("checkpoint", "view", "1/step-00000030").stdout
    )


def test_delete_asks_and_a_no_changes_nothing(run_cli, saved_root):
    result = run_cli("checkpoint", "delete", ID, input="n\n")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Delete checkpoint '{ID}'? It is the latest one of job 2, from which a restart would go on. [y/N]: n\n"
        "Nothing was changed.\n"
    )
    assert run_cli("checkpoint", "delete", "1/step-00000010", input="n\n").stderr.startswith(
        "Delete checkpoint '1/step-00000010'? [y/N]: "
    )
    assert find_entry(saved_root, ID).status == "committed"


def test_a_deleted_checkpoint_can_be_undeleted(run_cli, saved_root):
    result = run_cli("checkpoint", "delete", ID, "-y")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"Checkpoint '{ID}' is deleted. Until 20")
    assert result.stderr.endswith(f" it can be undeleted: periflow-ray checkpoint undelete {ID}\n")
    assert run_cli("checkpoint", "download", ID).stderr == (
        f"Error: checkpoint '{ID}' is deleted. Take that back: periflow-ray checkpoint undelete {ID}\n"
    )
    assert run_cli("checkpoint", "delete", ID, "-y").exit_code == 2
    result = run_cli("checkpoint", "undelete", ID)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"Checkpoint '{ID}' is undeleted.\n")
    assert run_cli("checkpoint", "verify", ID).exit_code == 0
    result = run_cli("checkpoint", "undelete", ID)
    message = f"Error: checkpoint '{ID}' is not deleted; there is nothing to undelete.\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_the_former_name_of_undelete_still_works_but_is_not_shown(run_cli, saved_root):
    assert run_cli("checkpoint", "delete", ID, "-y").exit_code == 0
    result = run_cli("checkpoint", "restore", ID)
    assert (result.exit_code, result.stderr) == (0, f"Checkpoint '{ID}' is undeleted.\n")
    assert run_cli("checkpoint", "restore").stderr.startswith("Usage: periflow-ray checkpoint undelete [OPTIONS] ID\n")
    assert "restore" not in run_cli("checkpoint", "-h").stdout


def test_deleting_also_clears_what_was_deleted_long_ago(run_cli, saved_root):
    trash(saved_root, "1/step-00000010", keep_s=0)
    assert run_cli("checkpoint", "delete", "1/step-00000020", "-y").exit_code == 0
    assert [entry.name for entry in list_all(saved_root, 1)] == ["step-00000020", "step-00000030"]
    assert purge(saved_root, 1, NEW_YEAR_UNIX_S) == []


def test_what_is_left_of_a_partial_checkpoint_is_deleted_at_once(run_cli, saved_root):
    question = run_cli("checkpoint", "delete", "1/step-00000030", input="n\n").stderr
    assert question.startswith("Delete checkpoint '1/step-00000030'? It is partial and cannot be undeleted. [y/N]: ")
    result = run_cli("checkpoint", "delete", "1/step-00000030", "-y")
    assert (result.exit_code, result.stderr) == (0, "Checkpoint '1/step-00000030' is deleted.\n")
    assert [entry.name for entry in list_all(saved_root, 1)] == ["step-00000010", "step-00000020"]


def test_a_checkpoint_on_its_way_is_not_deleted(run_cli, saved_root):
    result = run_cli("checkpoint", "delete", "3/step-00000007", "-y")
    message = "checkpoint '3/step-00000007' is being uploaded by job 3; wait for it, or stop the job first."
    assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")


@pytest.mark.parametrize("command", ["view", "download", "verify", "delete", "undelete"])
def test_an_unknown_id_is_answered_with_the_nearest_one(run_cli, saved_root, command):
    options = ["-y"] if command == "delete" else []
    result = run_cli("checkpoint", command, "2/step-0000400", *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "Error: checkpoint '2/step-0000400' does not exist. Did you mean '2/step-00000400'? "
    )


def test_a_job_without_checkpoints_has_no_latest_one(run_cli, saved_root):
    result = run_cli("checkpoint", "view", "3")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: job 3 has no committed checkpoint. All of its checkpoints: periflow-ray checkpoint list --job 3 "
        "--all\n",
    )
    for words in (["view", "9"], ["list", "--job", "9"]):
        assert run_cli("checkpoint", *words).stderr.startswith("Error: job 9 does not exist in storage root ")
