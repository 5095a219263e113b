"""The documents are true: commands parse, templates load, code compiles, tables say what the code does."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from support.commands import find_leaf_commands
from support.documents import MANUAL, PRESENT_DOCUMENTS, ROOT_DIR, Document, read_document

import periflow_ray
from periflow_ray.cli.main import cli
from periflow_ray.credentials import CREDENTIALS_FILE_VARIABLE, create_credential
from periflow_ray.credentials.credential_types import CREDENTIAL_TYPES
from periflow_ray.dataset_handle import DatasetHandle
from periflow_ray.plan import NodeFacts, build_plan, device_environment, load_catalogue, local_vm, node_environment
from periflow_ray.plan.variables import PUBLIC_VARIABLES
from periflow_ray.settings import STORAGE_VARIABLE
from periflow_ray.spec import JobSpec, load_sweep, load_template
from periflow_ray.store.backends import open_filesystem

PROGRAMS = ("periflow-ray", "pf")
# The keys of PeriFlow's templates; launch_mode was among them, but only with the value node.
PERIFLOW_KEYS = {
    "experiment",
    "name",
    "vm",
    "num_devices",
    "job_setting.type",
    "job_setting.docker.image",
    "job_setting.docker.command",
    "job_setting.docker.credential_id",
    "job_setting.docker.env_var",
    "job_setting.workspace.mount_path",
    "checkpoint.output_checkpoint_dir",
    "checkpoint.input.id",
    "checkpoint.input.mount_path",
    "data.name",
    "data.mount_path",
    "dist.dp_degree",
    "dist.pp_degree",
    "dist.mp_degree",
    "plugin.slack.channel",
    "plugin.slack.credential_id",
    "plugin.wandb.credential_id",
}
# Processes of a job tell each other by these; a user has no reason to set them.
INTERNAL_VARIABLES = {
    "PERIFLOW_ATTEMPT",
    "PERIFLOW_CLOUD_ENV_FILE",
    "PERIFLOW_COMMAND_ID",
    "PERIFLOW_ENABLED",
    "PERIFLOW_HPARAMS",
    "PERIFLOW_REPORT_INTERVAL_S",
    "PERIFLOW_SANDBOX",
    "PERIFLOW_KEEPER_FD",
    "PERIFLOW_LAUNCHER",
    "PERIFLOW_GIVEN",
    "PERIFLOW_MEMORY_MARK",
    "PERIFLOW_PROGRAM_PATH",
    "PERIFLOW_PYTHON_PATH",
    "PERIFLOW_QUESTION",
    "PERIFLOW_WARM_LAUNCHER",
    "PERIFLOW_SECRETS_KEY",
    "PERIFLOW_SESSION",
    "PERIFLOW_SESSION_VERSION",
}


@pytest.fixture(autouse=True)
def _of_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user who runs the tests is read; the credential and the file of the examples exist."""
    (tmp_path / "metadata.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(STORAGE_VARIABLE, str(tmp_path / "storage"))
    monkeypatch.setenv(CREDENTIALS_FILE_VARIABLE, str(tmp_path / "credentials.json"))
    create_credential("team-s3", "s3", {"access_key_id": "an-id", "secret_access_key": "a-key"})


def find_blocks(language: str) -> dict[str, str]:
    """The fenced blocks of a language in README and docs, by a name for each."""
    blocks = [(name, document.find_blocks(language)) for name, document in MANUAL.items() if name != "README.ko.md"]
    return {f"{name}-{number}": block for name, found in blocks for number, block in enumerate(found, start=1)}


def parse_command_line(line: str) -> str:
    """The name of the command that a line runs; fails as the program would if an option does not exist."""
    words = shlex.split(line, comments=True)
    # Without the part that a shell takes for itself.
    program, *arguments = itertools.takewhile(lambda word: word not in {">", ">>", "|"}, words)
    command: click.Command = cli
    ctx = click.Context(cli, info_name=program)
    names = []
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        inner = command.get_command(ctx, name)
        assert inner is not None, f"{line}: there is no command {name}"
        command = inner
        names.append(name)
    command.make_context(" ".join(names), arguments, parent=ctx)
    return " ".join(names)


def find_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a template's section that hold a value of their own."""
    for name, field in model.model_fields.items():
        given = getattr(field.annotation, "__args__", (field.annotation,))
        sections = [kind for kind in given if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if sections:
            yield from find_keys(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("document", PRESENT_DOCUMENTS.values(), ids=PRESENT_DOCUMENTS)
def test_command_lines_parse(document: Document) -> None:
    for line in document.find_command_lines(PROGRAMS):
        parse_command_line(line)


def test_every_command_has_an_example_of_itself() -> None:
    shown = {parse_command_line(line) for line in read_document("docs/commands.md").find_command_lines(PROGRAMS)}
    # Other names of the same commands, which the document says.
    known = {name for name, _ in find_leaf_commands(cli) if not name.startswith("dataset ")} - {"job run"}

    assert shown - {"job run"} == known


def test_options_in_the_text_exist() -> None:
    options = {
        option
        for _, command in find_leaf_commands(cli)
        for param in command.params
        for option in [*param.opts, *param.secondary_opts]
    } | {"--help", "-h"}
    written = [document for name, document in MANUAL.items() if name != "docs/commands.md"]
    codes = [code for document in written for code in document.find_inline_code()]
    mentioned = {code.split()[0].split("=")[0] for code in codes if re.match(r"--?[a-z]", code)}
    # Flags of a training script, of torchrun, of container engines, and of pip.
    of_others = {"--save", "--no-python", "--detach", "--network", "--user"}
    assert mentioned - options - of_others == {"-c"} - options


@pytest.mark.parametrize("text", find_blocks("yaml").values(), ids=find_blocks("yaml"))
def test_a_template_or_a_sweep_loads(text: str) -> None:
    if "\nparameters:" in text:
        load_sweep(text)
    else:
        load_template(text, known_vms=load_catalogue())


@pytest.mark.parametrize("text", find_blocks("yaml").values(), ids=find_blocks("yaml"))
def test_a_torchrun_of_several_nodes_is_told_where_its_peers_are(text: str) -> None:
    if "torchrun" in text and "--nnodes" in text:
        assert all(option in text for option in ("--node_rank", "--master_addr", "--master_port"))


@pytest.mark.parametrize("code", find_blocks("python").values(), ids=find_blocks("python"))
def test_python_code_compiles_and_uses_calls_that_exist(code: str) -> None:
    tree = ast.parse(code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pf"
    }
    imported = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("periflow_ray")
        for alias in node.names
    }

    assert used <= set(periflow_ray.__all__)
    for module, name in imported:
        # Not imported, because these modules import torch and transformers.
        path = ROOT_DIR / module.replace(".", "/")
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        assert re.search(rf'"{name}"|^(?:class|def) {name}\b', source, re.M), f"{module} has no {name}"


def test_no_document_or_example_names_a_vm_that_cannot_be_had() -> None:
    catalogue = load_catalogue()
    sources = {name: document.text for name, document in MANUAL.items()}
    sources |= {str(path): path.read_text(encoding="utf-8") for path in (ROOT_DIR / "examples").rglob("*.yml")}
    named = {
        (name, vm)
        for name, text in sources.items()
        for vm in re.findall(r"\b(?:aws|azure)-\d+gb-[a-z0-9-]+[a-z0-9]", text)
    }

    assert len(named) > 10
    assert [(name, vm) for name, vm in named if vm not in catalogue or catalogue[vm].retired_on] == []


def test_the_first_script_also_trains_without_a_job(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(read_document("README.md").find_blocks("python")[0], encoding="utf-8")

    subprocess.run([sys.executable, "main.py"], cwd=tmp_path, check=True, timeout=120)

    assert (tmp_path / "ckpt" / "checkpoint.pt").is_file()
    (log,) = tmp_path.glob("periflow_trainer_*.log")
    assert len(log.read_text().splitlines()) == 500


def test_the_additions_to_the_template_are_the_keys_that_periflow_had_not() -> None:
    section = read_document("docs/moving-from-periflow.md").find_section("Additions to the template")
    listed = {name for name in re.findall(r"`([a-z_.]+)(?:: \w+)?`", section) if name != "sweep"}
    keys = {key for key in find_keys(JobSpec) if not key.startswith("sweep.")}

    assert listed == keys - PERIFLOW_KEYS
    assert keys >= PERIFLOW_KEYS


def test_the_reference_of_the_template_has_every_key() -> None:
    text = read_document("docs/template-keys.md").text
    keys = {key for key in find_keys(JobSpec) if not key.startswith(("sweep.", "job_setting.docker.command."))}

    assert set(re.findall(r"^\| `([\w.]+)` \|", text, re.M)) == keys | {"sweep"}


def test_the_table_of_the_environment_has_every_variable() -> None:
    plan = build_plan(
        load_template(read_document("README.md").find_blocks("yaml")[0]).spec, local_vm(), storage_uri="/storage"
    )
    node = NodeFacts(
        num_nodes=1,
        node_rank=0,
        master_addr="",
        master_port=0,
        attempt=1,
        processed_iters=0,
        output_checkpoint_dir="/c",
    )
    per_node = node_environment(plan, node)
    per_device = device_environment(plan, node, local_rank=0)
    rows = read_document("docs/inside-a-job.md").find_table("Environment")
    *on_nodes, on_devices = [set(re.findall(r"`(\w+)`", row[0])) for row in rows]

    assert set().union(*on_nodes) == set(per_node)
    assert on_devices == set(per_device) - set(per_node)


def test_the_table_of_variables_has_every_one_that_a_user_may_set() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT_DIR / "periflow_ray").rglob("*.py")]
    read = {name for source in sources for name in re.findall(r'"(PERIFLOW_[A-Z_]+)"', source)}

    rows = read_document("docs/settings.md").find_table("Variables of the commands")
    shown = [row[0].strip("`") for row in rows]
    assert sorted(shown) == sorted(read - INTERNAL_VARIABLES) == sorted(PUBLIC_VARIABLES)


def test_every_storage_root_of_the_table_opens() -> None:
    rows = read_document("docs/storage.md").find_table("The storage root")
    # The extra gcp is not among those that the tests install.
    uris = [row[0].strip("`") for row in rows if row[1] != "`gcp`"]
    variables = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}

    paths = [open_filesystem(uri, variables=variables)[1] for uri in uris]
    assert paths == ["/shared/periflow", "bucket/prefix", "container/prefix"]


def test_every_type_of_credential_is_named() -> None:
    section = read_document("docs/credentials.md").find_section("Credentials")

    assert [name for name in CREDENTIAL_TYPES if f"`{name}`" not in section] == []


def test_a_dataset_handle_has_the_methods_that_the_example_calls() -> None:
    (example,) = [
        code for code in read_document("docs/datasets.md").find_blocks("python") if "periflow_ray.dataset(" in code
    ]
    called = set(re.findall(r"\bhandle\.(\w+)\(", example))

    assert called == {"local_path", "ray_dataset"}
    assert [name for name in called if not hasattr(DatasetHandle, name)] == []
