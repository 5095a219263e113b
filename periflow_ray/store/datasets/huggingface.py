"""Public Hugging Face datasets, saved so that ``datasets.load_from_disk`` reads them."""

from __future__ import annotations

import importlib
from pathlib import Path

from periflow_ray.errors import StorageError
from periflow_ray.store.read_only import remove_tree


def save_huggingface_dataset(name: str, directory: Path) -> None:
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
        datasets.load_dataset(name).save_to_disk(str(directory))
    except Exception as err:  # The package and what it loads raise errors of every kind.
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise StorageError(f"Hugging Face dataset '{name}' cannot be loaded: {type(err).__name__}: {reason}") from err
