"""What a command's variables say of its Python: the one seam between environments and the start of commands. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

# Of an environment that was active where the cluster or the job was started. What follows them, such as
# `uv pip install` or `conda install`, would change that one.
_ACTIVATION_NAMES = frozenset({"VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "PYTHONHOME", "PYTHONUSERBASE", "CONDA_PREFIX"})
_ACTIVATION_PREFIXES = ("CONDA_PREFIX_", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "CONDA_PROMPT_MODIFIER")


@dataclass(frozen=True)
class CommandPython:
    """The Python that a command finds.

    Args:
        program_dirs: first on its ``PATH``, in this order.
        hidden_dirs: not on its ``PATH``, even if the variables that it inherits have them there.
        variables: what its tools read, such as ``VIRTUAL_ENV``.
        package_dirs: of packages that the programs of an image, too, have to find; elsewhere such programs are in
            ``program_dirs`` once more.
    """

    program_dirs: tuple[str, ...] = ()
    hidden_dirs: frozenset[str] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict)
    package_dirs: tuple[str, ...] = ()

    def apply(self, inherited: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        """The variables of the command.

        Args:
            inherited: from this process, or the shell that submitted the job.
            given: by the job itself; they win, but ``PATH`` begins with ``program_dirs`` all the same.
        """
        kept = {name: value for name, value in inherited.items() if not _is_of_activation(name)}
        path = given.get("PATH", inherited.get("PATH", os.defpath)).split(os.pathsep)
        dirs = [*self.program_dirs, *(entry for entry in path if entry not in self.hidden_dirs)]
        return {**kept, **self.variables, **given, "PATH": os.pathsep.join(dirs)}


def _is_of_activation(name: str) -> bool:
    return name in _ACTIVATION_NAMES or name.startswith(_ACTIVATION_PREFIXES)
