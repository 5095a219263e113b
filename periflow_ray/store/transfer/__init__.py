"""Moves many bytes to and from a storage root, in parallel and retried."""

from __future__ import annotations

from periflow_ray.store.transfer.downloading import DownloadItem
from periflow_ray.store.transfer.transfers import Transfer, download_file, upload_file
from periflow_ray.store.transfer.uploading import UploadItem

__all__ = [
    "DownloadItem",
    "Transfer",
    "UploadItem",
    "download_file",
    "upload_file",
]
