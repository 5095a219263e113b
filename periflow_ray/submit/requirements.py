"""Whether the requirements file that a template names is in the workspace, and can be read."""

from __future__ import annotations

from periflow_ray.errors import PlanError
from periflow_ray.names import suggest_names
from periflow_ray.spec.python import PythonSpec
from periflow_ray.spec.requirements import Requirements, read_requirements
from periflow_ray.submit.workspace import Workspace

_KEY = ("job_setting", "python", "requirements")


def check_requirements(spec: PythonSpec, workspace: Workspace | None) -> Requirements:
    """What a template's requirements file asks for; nothing where it names none.

    Raises:
        PlanError: the workspace has no such file, or lines of it cannot be read; all of them are in the message.
    """
    if spec.requirements is None:
        return Requirements()
    if workspace is None:
        raise PlanError(
            f"job_setting.python.requirements is '{spec.requirements}', a file of the workspace, and no workspace was "
            "given. Give the directory that it is in: -d DIR",
            _KEY,
        )
    if spec.requirements not in workspace.files:
        is_ignored = (workspace.directory / spec.requirements).exists()
        nearest = suggest_names(spec.requirements, [path for path in workspace.files if path.endswith((".txt", ".in"))])
        why = "is left out of the workspace, by .gitignore or .pfignore" if is_ignored else "is not in the workspace"
        raise PlanError(f"'{spec.requirements}' {why} '{workspace.directory}'.{nearest}", _KEY)

    def read(path: str) -> str:
        if path not in workspace.files:
            raise FileNotFoundError(2, f"it is not in the workspace '{workspace.directory}'")
        return (workspace.directory / path).read_text("utf-8")

    found = read_requirements(spec.requirements, read)
    missing = [path for path in found.local_paths if not (workspace.directory / path).exists()]
    problems = [*found.problems, *(f"'{path}' is not in the workspace" for path in missing)]
    if problems:
        raise PlanError("requirements that cannot be used:\n" + "\n".join(f"  {text}" for text in problems), _KEY)
    return found
