from __future__ import annotations

import json

from periflow_ray.jobs.experiments import list_experiments


def names(root) -> list[str]:
    return [experiment.name for experiment in list_experiments(root)]


def test_an_experiment_is_created_renamed_and_deleted(run_cli, root):
    result = run_cli("experiment", "create", "-n", "computer-vision")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Experiment 'computer-vision' is created.\n")
    assert run_cli("experiment", "create", "-n", "computer-vision").exit_code == 2
    assert run_cli("experiment", "edit", "computer-vision", "-n", "vision").exit_code == 0
    assert names(root) == ["vision"]
    assert run_cli("experiment", "delete", "vision", input="n\n").exit_code == 1
    assert names(root) == ["vision"]
    assert run_cli("experiment", "delete", "vision", "-y").exit_code == 0
    assert names(root) == []


def test_the_list_counts_jobs(run_cli, sample_root):
    (experiment,) = json.loads(run_cli("experiment", "list", "-o", "json").stdout)
    assert (experiment["name"], experiment["num_jobs"]) == ("vision", 2)
    assert "│ vision │ 2    │" in run_cli("experiment", "list").stdout


def test_view_shows_the_experiments_jobs(run_cli, sample_root):
    document = json.loads(run_cli("experiment", "view", "vision", "-o", "json").stdout)
    assert [job["number"] for job in document["jobs"]] == [2, 1]
    assert "│ 1      │ cifar-job │ success │" in run_cli("experiment", "view", "vision").stdout


def test_an_unknown_experiment_is_an_error_that_says_what_to_do(run_cli, root):
    for words in (["view", "nlp"], ["edit", "nlp", "-n", "x"], ["delete", "nlp", "-y"]):
        result = run_cli("experiment", *words)
        assert (result.exit_code, result.stderr) == (
            1,
            "Error: experiment 'nlp' does not exist. Create it: periflow-ray experiment create -n 'nlp'\n",
        )
