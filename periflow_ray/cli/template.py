"""``job template create`` asks for a job's settings and writes a pf-template.yml; ``job schema`` prints its schema."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.names import nearest_names
from periflow_ray.plan.catalogue import LOCAL_VM_NAME, load_catalogue
from periflow_ray.spec import build_json_schema, load_template
from periflow_ray.submit.workspace import workspace_name

_COMMANDS = {"create": ("periflow_ray.cli.template:create", "Ask for a job's settings and write a pf-template.yml.")}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def template() -> None:
    """Write a pf-template.yml.

    \b
    Example:
      periflow-ray job template create -s pf-template.yml
    """


@click.command()
def schema() -> None:
    """Print the JSON Schema of pf-template.yml, for completion and checks in editors.

    \b
    Example:
      periflow-ray job schema > pf-template.schema.json
    """
    click.echo(json.dumps(build_json_schema(), indent=2, ensure_ascii=False))


@click.command()
@click.option(
    "-s",
    "--save-path",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("pf-template.yml"),
    show_default=True,
    help="File to write.",
)
def create(save_path: Path) -> None:
    """Ask for a job's settings and write a pf-template.yml.

    Answers may also come from a pipe, one line each; an empty line takes the default.

    \b
    Example:
      periflow-ray job template create -s pf-template.yml
    """
    if save_path.exists():
        click.confirm(f"{save_path} exists. Replace it?", abort=True, err=True)
    answers = _ask()
    text = build_template_text(answers)
    load_template(text, source=str(save_path), known_vms=load_catalogue())
    save_path.parent.mkdir(parents=True, exist_ok=True)
    save_path.write_text(text, encoding="utf-8")
    run = f"periflow-ray submit -f {shlex.quote(str(save_path))} -d {shlex.quote(answers.workspace_dir)}"
    click.echo(f"Wrote {save_path}. Run it: {run}", err=True)


@dataclass(frozen=True)
class TemplateAnswers:
    """The answers that make a template; empty text means that the key is left out.

    Args:
        workspace_dir: the folder with the script, in which ``command`` runs.
    """

    name: str
    experiment: str
    vm: str
    num_devices: int
    workspace_dir: str
    command: str
    mount_path: str
    output_checkpoint_dir: str
    dataset: str = ""
    dataset_mount_path: str = ""


def build_template_text(answers: TemplateAnswers) -> str:
    """A commented pf-template.yml."""
    lines = []
    folder = f"{answers.mount_path.rstrip('/')}/{workspace_name(Path(answers.workspace_dir))}"
    # torchrun starts the ranks of a node itself.
    is_per_device = answers.num_devices > 1 and "torchrun" not in answers.command
    if answers.name:
        lines += ["# Name of the job; need not be unique", f"name: {_scalar(answers.name)}", ""]
    if answers.experiment:
        lines += ["# Group of jobs that it belongs to", f"experiment: {_scalar(answers.experiment)}", ""]
    lines += [
        "# Machine type; list all: periflow-ray vm list",
        f"vm: {_scalar(answers.vm)}",
        "",
        "# Devices of the whole job, on all machines together",
        f"num_devices: {answers.num_devices}",
        "",
        "job_setting:",
        "  type: custom",
        *(
            ["  # The command runs once per device, with RANK and LOCAL_RANK set", "  launch_mode: device"]
            * is_per_device
        ),
        "  docker:",
        "    # Bash; MASTER_ADDR, MASTER_PORT, WORLD_SIZE, NODE_RANK, NUM_NODES and NPROC_PER_NODE are set",
        "    command: |",
        f"      cd {shlex.quote(folder)}",
        *(f"      {line}" for line in answers.command.splitlines()),
        "  # Where the workspace directory (submit -d DIR) appears, as <mount_path>/<name of DIR>",
        "  workspace:",
        f"    mount_path: {_scalar(answers.mount_path)}",
    ]
    if answers.output_checkpoint_dir:
        lines += [
            "",
            "# pf.upload_checkpoint() stores everything in this directory; a restarted job finds it filled again",
            "checkpoint:",
            f"  output_checkpoint_dir: {_scalar(answers.output_checkpoint_dir)}",
        ]
    if answers.dataset:
        lines += [
            "",
            "# Dataset to read; list all: periflow-ray datastore list",
            "data:",
            f"  name: {_scalar(answers.dataset)}",
            f"  mount_path: {_scalar(answers.dataset_mount_path)}",
        ]
    return "\n".join(lines) + "\n"


def _ask() -> TemplateAnswers:
    name = _ask_text("Name of the job (empty for none)")
    experiment = _ask_text("Experiment (empty for none)")
    vm = click.prompt("VM type (all: periflow-ray vm list)", default=LOCAL_VM_NAME, value_proc=_check_vm, err=True)
    num_devices = click.prompt(
        "Number of devices of the whole job",
        default=load_catalogue()[vm].num_devices,
        type=click.IntRange(min=1),
        err=True,
    )
    workspace_dir = click.prompt("Folder with your script", default=".", value_proc=_check_folder, err=True)
    command = click.prompt("Command to run in it", default="python main.py", value_proc=str.strip, err=True)
    mount_path = click.prompt(
        "Where the folder appears in the job", default="/workspace", value_proc=_check_absolute, err=True
    )
    output_checkpoint_dir = _ask_text(
        "Folder for checkpoints in the job, for example /workspace/ckpt (empty for none)", is_path=True
    )
    dataset = _ask_text("Dataset (empty for none)")
    dataset_mount_path = ""
    if dataset:
        dataset_mount_path = click.prompt(
            "Dataset mount path", default=f"{mount_path.rstrip('/')}/data", value_proc=_check_absolute, err=True
        )
    return TemplateAnswers(
        name,
        experiment,
        vm,
        num_devices,
        workspace_dir,
        command,
        mount_path,
        output_checkpoint_dir,
        dataset,
        dataset_mount_path,
    )


def _ask_text(question: str, *, is_path: bool = False) -> str:
    check = _check_absolute_or_empty if is_path else str.strip
    answer: str = click.prompt(question, default="", show_default=False, value_proc=check, err=True)
    return answer


def _check_vm(answer: str) -> str:
    catalogue = load_catalogue()
    name = answer.strip()
    if name in catalogue:
        return name
    nearest = nearest_names(name, catalogue, num_names=3, cutoff=0.4)
    suggestion = f" Near: {', '.join(nearest)}." if nearest else ""
    raise click.UsageError(f"VM type '{name}' is not in the catalogue.{suggestion}")


def _check_folder(answer: str) -> str:
    path = Path(answer.strip()).expanduser()
    if not path.is_dir():
        raise click.UsageError(f"'{answer}' is no folder here.")
    if not workspace_name(path):
        raise click.UsageError("a job's folder cannot be the root of the file system.")
    return str(path)


def _check_absolute(answer: str) -> str:
    if not answer.strip().startswith("/"):
        raise click.UsageError(f"'{answer}' must be an absolute path, for example /workspace")
    return answer.strip()


def _check_absolute_or_empty(answer: str) -> str:
    return _check_absolute(answer) if answer.strip() else ""


def _scalar(text: str) -> str:
    """Text as a YAML scalar, quoted only where YAML would read something else."""
    import yaml

    return yaml.safe_dump(text, width=float("inf"), allow_unicode=True).removesuffix("\n").removesuffix("\n...")
