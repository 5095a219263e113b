"""Python imports this file at its start when the folder is on PYTHONPATH; child processes inherit that."""

import torchvision_shim  # noqa: F401
