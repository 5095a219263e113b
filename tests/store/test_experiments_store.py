from __future__ import annotations

import pytest

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs.experiments import (
    create_experiment,
    delete_experiment,
    has_experiment,
    list_experiments,
    read_experiment,
    rename_experiment,
)


@pytest.mark.parametrize("name", ["resnet", "ResNet 50, lr=0.1", "실험", "a.json", "x" * 128, "a*", "[1]"])
def test_an_experiment_reads_back_under_its_name(root, name):
    experiment = create_experiment(root, name)
    assert experiment.name == name
    assert read_experiment(root, name) == experiment
    assert list_experiments(root) == [experiment]
    delete_experiment(root, name)
    assert list_experiments(root) == []


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "line\nbreak", "x" * 129])
def test_a_name_that_cannot_be_a_key_is_refused(root, name):
    with pytest.raises(UsageError) as caught:
        create_experiment(root, name)
    assert str(caught.value) == (
        f"experiment name {name!r} cannot be used: 1 to 128 characters, no '/', '\\' or control characters, "
        "not starting with '.'"
    )
    assert list_experiments(root) == []


def test_a_name_is_used_once(root):
    create_experiment(root, "resnet")
    with pytest.raises(UsageError) as caught:
        create_experiment(root, "resnet")
    assert str(caught.value) == "experiment 'resnet' already exists. List them: periflow-ray experiment list"


def test_renaming_keeps_no_experiment_under_the_old_name(root):
    create_experiment(root, "resnet")
    create_experiment(root, "vit")
    rename_experiment(root, "resnet", "convnet")
    assert [experiment.name for experiment in list_experiments(root)] == ["convnet", "vit"]
    with pytest.raises(UsageError):
        rename_experiment(root, "convnet", "vit")
    assert has_experiment(root, "convnet")


def test_deleting_one_leaves_those_with_similar_names(root):
    for name in ("run*", "run-1", "run-2"):
        create_experiment(root, name)
    delete_experiment(root, "run*")
    assert [experiment.name for experiment in list_experiments(root)] == ["run-1", "run-2"]


def test_a_missing_experiment_is_answered_with_what_to_do(root):
    for use in (read_experiment, delete_experiment, lambda root, name: rename_experiment(root, name, "other")):
        with pytest.raises(NotFoundError) as caught:
            use(root, "gpt")
        assert str(caught.value) == (
            "experiment 'gpt' does not exist. Create it: periflow-ray experiment create -n 'gpt'"
        )
