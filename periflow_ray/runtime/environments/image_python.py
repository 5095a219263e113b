"""The Python that an image has, by asking it: which one, what it finds, and the torch in it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import JobFailedError
from periflow_ray.processes import Command
from periflow_ray.runtime.environments.container import Container
from periflow_ray.runtime.environments.cuda import TorchVersion, read_torch_version
from periflow_ray.runtime.environments.engine import NOT_STARTED
from periflow_ray.runtime.environments.layer import PythonBelow

_GRACE_S = 1.0
_MARK = "periflow-image-python "
# Runs in the image's Python, 3.8 or newer. Of torch nothing is imported.
_QUESTION = """
import importlib.util, json, os, re, site, sys
try:
    from importlib import metadata
    packages = sorted({(d.metadata["Name"] or "").lower() + "==" + d.version for d in metadata.distributions()})
except Exception:
    packages = []
def read_torch():
    spec = importlib.util.find_spec("torch")
    try:
        with open(os.path.join(os.path.dirname(spec.origin), "version.py")) as file:
            return file.read()
    except Exception:
        return None
dirs = [d for d in ([site.getusersitepackages()] if site.ENABLE_USER_SITE else []) + site.getsitepackages()]
print("MARK" + json.dumps({
    "interpreter": getattr(sys, "_base_executable", None) or sys.executable,
    "version": sys.version.split()[0],
    "package_dirs": [d for d in dirs if os.path.isdir(d)],
    "packages": packages,
    "has_pip": importlib.util.find_spec("pip") is not None,
    "torch": read_torch(),
}))
""".replace("MARK", _MARK)
_COMMAND = """
for name in python python3; do
    if command -v "$name" >/dev/null; then exec "$name" -c "$PERIFLOW_QUESTION"; fi
done
"""


@dataclass(frozen=True)
class ImagePython:
    """The Python of an image.

    Args:
        image_id: of the image.
        below: it, as what an environment builds on.
        packages: ``name==version`` of all that it finds, sorted.
        has_pip: whether pip is among them.
        torch: the version of its torch and of the CUDA that it is built for, see ``read_torch_version``.
    """

    image_id: str
    below: PythonBelow
    packages: tuple[str, ...]
    has_pip: bool
    torch: TorchVersion | None


def ask_image(container: Container, client_environment: Mapping[str, str]) -> ImagePython | None:
    """The image's ``python``, else its ``python3``; None where neither answers.

    Args:
        client_environment: of the engine's client.
    Raises:
        JobFailedError: no container can be started.
    """
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        start = container.start(
            _COMMAND, {"PERIFLOW_QUESTION": _QUESTION}, client_environment=client_environment, working_dir="/"
        )
        command = Command(
            start.argv,
            env=start.env,
            working_dir=Path(directory),
            grace_s=_GRACE_S,
            on_line=lines.append,
            finish=start.finish,
        )
        result = command.start().wait()
    found = next((line[len(_MARK) :] for line in lines if line.startswith(_MARK)), None)
    if found is None and result.exit_code in (None, NOT_STARTED):
        said = "".join(f"\n  {line}" for line in lines[-5:])
        raise JobFailedError(f"a container of the image '{container.image.name}' cannot be started.{said}")
    if found is None:
        return None
    facts = json.loads(found)
    below = PythonBelow(facts["interpreter"], facts["version"], tuple(facts["package_dirs"]))
    return ImagePython(
        container.image.id, below, tuple(facts["packages"]), facts["has_pip"], read_torch_version(facts["torch"] or "")
    )
