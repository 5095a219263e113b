"""``periflow_ray.KeepBest``, from the outside."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import periflow_ray


def test_a_function_job_is_told_which_checkpoint_is_the_best():
    rule = periflow_ray.KeepBest(metric="val_loss", mode="min")
    periflow_ray.TorchTrainer(print, keep_last=2, keep_best=rule)
    # It travels to the job's monitor.
    assert pickle.loads(pickle.dumps(rule)) == rule


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "loss", "mode": "lowest"}, "is the text 'lowest'; it must be 'min' or 'max'"),
        ({"metric": "loss"}, "Field required"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        periflow_ray.KeepBest(**given)


def test_there_is_one_class_for_templates_and_for_python():
    from periflow_ray.spec import KeepBest

    assert periflow_ray.KeepBest is KeepBest


def test_naming_it_imports_neither_ray_nor_torch():
    code = "import sys, periflow_ray; periflow_ray.KeepBest; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
