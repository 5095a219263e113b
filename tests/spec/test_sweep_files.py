"""What a sweep's file may say, and what is said about one that is wrong."""

from __future__ import annotations

import pytest

from periflow_ray.errors import TemplateError
from periflow_ray.spec import Method, Parameter, SweepSpec, load_sweep, load_template

MINIMAL = "metric: loss\nmode: min\nnum_trials: 4\nparameters: {lr: {uniform: [0, 1]}}\n"
TEMPLATE = "vm: local\nnum_devices: 1\njob_setting: {type: custom, docker: {command: 'true'}}\n"


def load(changes: str = "", without: str = "-") -> SweepSpec:
    lines = [line for line in MINIMAL.splitlines() if not line.startswith(without)]
    return load_sweep("\n".join([*lines, changes]))


def test_a_sweep_is_read_as_it_is_written() -> None:
    spec = load_sweep(
        """\
metric: accuracy
mode: max
num_trials: 16
parameters:
  lr: {loguniform: [1e-4, 1e-1]}
  width: {randint: [8, 65]}
  optimizer: {choice: [sgd, adam]}
  momentum: {quniform: [0.5, 0.9, 0.1], when: {optimizer: sgd}}
  nesterov: {choice: [true, false], when: {optimizer: [sgd]}}
  seed: 7
scheduler: {type: asha, max_t: 100, reduction_factor: 3}
search: optuna
stop: {accuracy: 0.99, step: 1000}
time_budget: 2h
max_cost: 12.5
resources: {device: 0.25}
points: [{lr: 1e-2, width: 32}]
"""
    )
    assert spec.parameters == {
        "lr": Parameter("loguniform", (0.0001, 0.1)),
        "width": Parameter("randint", (8, 65)),
        "optimizer": Parameter("choice", ("sgd", "adam")),
        "momentum": Parameter("quniform", (0.5, 0.9, 0.1), {"optimizer": ("sgd",)}),
        "nesterov": Parameter("choice", (True, False), {"optimizer": ("sgd",)}),
        "seed": Parameter("fixed", (7,)),
    }
    assert spec.scheduler == Method("asha", {"max_t": 100, "reduction_factor": 3})
    assert (spec.search, spec.num_wanted, spec.time_budget_s, spec.max_cost) == (Method("optuna"), 16, 7200.0, 12.5)
    assert (spec.stop, spec.resources.device) == ({"accuracy": 0.99, "step": 1000.0}, 0.25)
    assert spec.points == ({"lr": 0.01, "width": 32},)
    # As it is stored.
    assert SweepSpec.model_validate_json(spec.model_dump_json()) == spec


def test_grids_alone_say_how_many_trials_there_are() -> None:
    grids = "parameters: {a: {grid: [1, 2, 3]}, b: {grid: [x, y]}, c: 1}"
    assert load(grids, without="parameters").num_wanted == 4
    spec = load_sweep(f"metric: loss\nmode: min\n{grids}")
    assert (spec.num_wanted, spec.num_combinations) == (6, 6)
    choices = "search: grid\nparameters: {a: {choice: [1, 2, 3]}, b: {choice: [x, y]}}"
    assert load_sweep(f"metric: loss\nmode: min\n{choices}").num_wanted == 6


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ("mode: maxi", "mode is the text 'maxi'; it must be 'min' or 'max'. Did you mean 'max'?"),
        ("metric: step", "metric is 'step', which every report has"),
        ("num_trials: 0", "num_trials is the number 0; it must be a decimal whole number from 1"),
        ("metrics: x", "unknown key 'metrics'. Did you mean 'metric'? Allowed: metric, mode, parameters"),
        ("parameters: [lr]", "parameters is a list; it must be a mapping of names"),
        ("parameters: {}", "parameters is a mapping; it must be a mapping of names"),
        ("parameters: {PATH: 1}", "parameters.PATH is a variable that the job itself needs"),
        ("parameters: {PERIFLOW_X: 1}", "parameters.PERIFLOW_X is a variable that the job itself needs"),
        ("parameters: {learning-rate: 1}", "parameters.learning-rate is no name that a shell takes"),
        ("parameters: {lr: [1, 2]}", "parameters.lr is a list; write {choice: [...]} or {grid: [...]}"),
        ("parameters: {lr: {unifrm: [0, 1]}}", "parameters.lr has 'unifrm'; it must have one of choice, grid"),
        ("parameters: {lr: {unifrm: [0, 1]}}", "Did you mean 'uniform'?"),
        ("parameters: {lr: {uniform: [0, 1], choice: [1]}}", "parameters.lr has 2 kinds"),
        ("parameters: {lr: {uniform: [1]}}", "parameters.lr has uniform with 1 values; it must be uniform: [LOWER"),
        ("parameters: {lr: {uniform: 3}}", "parameters.lr has uniform with the number 3; it must be uniform: [LOWER"),
        ("parameters: {lr: {uniform: [a, b]}}", "parameters.lr has uniform with the text 'a'; it must be"),
        ("parameters: {lr: {uniform: [2, 1]}}", "parameters.lr has uniform from 2 to 1; the lower bound comes first"),
        ("parameters: {lr: {loguniform: [0, 1]}}", "a logarithmic range begins above 0"),
        ("parameters: {lr: {randint: [0.5, 3]}}", "whole numbers"),
        ("parameters: {lr: {randn: [0, 0]}}", "parameters.lr has randn with a deviation of 0"),
        ("parameters: {lr: {quniform: [0, 1, 2]}}", "parameters.lr has quniform with a step of 2"),
        ("parameters: {lr: {choice: [1, 1]}}", "parameters.lr has a value twice in choice"),
        ("parameters: {lr: {choice: [1], when: x}}", "parameters.lr has 'when' that is no mapping"),
        ("parameters: {lr: {choice: [1, 2], when: {opt: 1}}}", "has lr only when 'opt' has some value"),
        ("scheduler: ashaa", "scheduler is the text 'ashaa'; it must be one of none, asha"),
        ("scheduler: asha", "scheduler is asha without max_t"),
        (
            "scheduler: {type: asha, max_t: 9, grace: 1}",
            "scheduler has 'grace', and scheduler asha takes max_t",
        ),
        ("scheduler: {max_t: 9}", "scheduler is a mapping without 'type'"),
        ("scheduler: pbt", "scheduler is pbt without perturbation_interval"),
        (
            "num_trials: 1\nscheduler: {type: pbt, perturbation_interval: 9}",
            "is pbt, which compares all",
        ),
        ("scheduler: {type: pbt, perturbation_interval: 9}\nmax_concurrent: 2", "give it two at least, and no smaller"),
        (
            "scheduler: {type: pbt, perturbation_interval: 9}\nsearch: optuna",
            "is optuna, and pbt draws at random",
        ),
        ("scheduler: pb2", "scheduler is pb2 without perturbation_interval"),
        (
            "scheduler: {type: pb2, perturbation_interval: 9, burn_in_period: 3}",
            "scheduler has 'burn_in_period', and scheduler pb2 takes perturbation_interval, quantile_fraction, synch",
        ),
        (
            "scheduler: {type: pb2, perturbation_interval: 9}\nparameters: {a: {uniform: [0, 1]}, b: {choice: [1, 2]}}",
            "5:36: parameters.b is choice, and scheduler pb2 takes ranges of real numbers alone; make it uniform or",
        ),
        (
            "scheduler: {type: pb2, perturbation_interval: 9}\nparameters: {a: {uniform: [0, 1], when: {b: 1}}, b: 1}",
            "parameters.a has a condition, and scheduler pb2 changes every parameter of a trial",
        ),
        (
            "scheduler: {type: pbt, perturbation_interval: 9}\nparameters: {a: 1}",
            "parameters has fixed values alone, and",
        ),
        ("search: bayesopt\nparameters: {a: {randint: [1, 9]}}", "parameters.a is randint, and search bayesopt takes"),
        ("search: optuna\nparameters: {a: {randn: [1, 9]}}", "parameters.a is randn, and search optuna takes"),
        ("parameters: {a: {quniform: [0.1, 1, 0.25]}}", "a bound of 0.1, which is no multiple of its step of 0.25"),
        ("search: grid", "search is grid, and lr is uniform"),
        ("search: opuna", "search is the text 'opuna'; it must be one of random, grid, optuna"),
        ("search: optuna\nparameters: {a: {grid: [1, 2]}}", "search is optuna, and a is a grid; make it a choice"),
        ("stop: 3", "stop is the number 3; it must be a mapping such as"),
        ("stop: {loss: low}", "stop has the text 'low' for 'loss'; it must be a number"),
        ("points: {lr: 1}", "points is a mapping; it must be a list of mappings"),
        ("points: [{lrr: 1}]", "points has 'lrr', which is no parameter. Did you mean 'lr'?"),
        ("resources: {device: 2}", "resources.device is the number 2; it must be a share of a device"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_allowed(changes: str, problem: str) -> None:
    without = "parameters" if "parameters" in changes else changes.partition(":")[0]
    with pytest.raises(TemplateError) as caught:
        load(changes, without=without)
    assert problem in str(caught.value)


def test_all_problems_come_at_once_with_their_places() -> None:
    with pytest.raises(TemplateError) as caught:
        load("serch: optuna\nscheduler: ashaa\nstop: 3")
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == [
        "sweep.yml:5:1:",
        "sweep.yml:6:1:",
        "sweep.yml:7:1:",
    ]


def test_a_number_of_trials_is_needed_where_a_range_is_searched() -> None:
    with pytest.raises(TemplateError, match="num_trials is missing; it is required where"):
        load(without="num_trials")


def test_a_template_may_have_the_sweep_in_a_section() -> None:
    section = "sweep:\n" + "".join(f"  {line}\n" for line in MINIMAL.splitlines())
    assert load_template(TEMPLATE + section).spec.sweep == load()
    with pytest.raises(TemplateError, match=r"pf-template\.yml:6:3: sweep\.mode is the text 'most'"):
        load_template(TEMPLATE + section.replace("mode: min", "mode: most"))
