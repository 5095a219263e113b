"""Public Hugging Face datasets, saved so that ``datasets.load_from_disk`` reads them."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from pathlib import Path

from periflow_ray.errors import StorageError
from periflow_ray.store.read_only import remove_tree


@dataclass(frozen=True)
class Part:
    """Which part of a public dataset, in which version: as ``datasets.load_dataset`` takes it, None for its default."""

    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def describe(self, name: str) -> str:
        """The dataset with what was chosen of it: ``wikitext (split train)``."""
        chosen = ", ".join(f"{key} {value}" for key, value in asdict(self).items() if value is not None)
        return f"{name} ({chosen})" if chosen else name


WHOLE = Part()


def save_huggingface_dataset(name: str, part: Part, directory: Path) -> None:
    """Load a public dataset and save it; the download has the ``datasets`` package's own cache below ``HF_HOME``.

    Args:
        name: as ``datasets.load_dataset`` takes it.
        directory: what is in it goes.
    Raises:
        StorageError: the package is not installed, or the dataset cannot be loaded.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as err:
        raise StorageError(
            f"Hugging Face dataset '{name}' needs the package 'datasets' on every node: pip install datasets"
        ) from err
    # An earlier attempt may have died while it saved.
    remove_tree(directory)
    try:
        options = {
            key: value for key, value in (("split", part.split), ("revision", part.revision)) if value is not None
        }
        names = [name] if part.config is None else [name, part.config]
        datasets.load_dataset(*names, **options).save_to_disk(str(directory))
    except Exception as err:  # The package and what it loads raise errors of every kind.
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise StorageError(
            f"Hugging Face dataset '{part.describe(name)}' cannot be loaded: {type(err).__name__}: {reason}"
        ) from err
