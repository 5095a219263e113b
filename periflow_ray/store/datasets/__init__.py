"""Datasets: their records, uploads, and the cache of each machine."""

from __future__ import annotations

from periflow_ray.store.datasets.records import (
    Dataset,
    UploadProgress,
    delete_dataset,
    edit_dataset,
    link_dataset,
    list_dataset_files,
    list_datasets,
    list_unfinished_uploads,
    locate_dataset,
    read_dataset,
    upload_dataset,
)

__all__ = [
    "Dataset",
    "UploadProgress",
    "delete_dataset",
    "edit_dataset",
    "link_dataset",
    "list_dataset_files",
    "list_datasets",
    "list_unfinished_uploads",
    "locate_dataset",
    "read_dataset",
    "upload_dataset",
]
