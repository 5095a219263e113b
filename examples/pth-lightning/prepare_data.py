"""Write scikit-learn's 1,797 handwritten digits as MNIST files, without the internet.

    python prepare_data.py --output DIR                makes DIR/MNIST/raw, where torchvision looks for MNIST
    python prepare_data.py --output DIR --if-missing   leaves a DIR that holds MNIST alone

The digits are 8 x 8 gray images; here each pixel becomes 3 x 3 pixels inside a black frame, 28 x 28 in all.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
from pathlib import Path

import numpy

NUM_DIGITS = 1797
NUM_TEST_IMAGES = 297
# Kind of value in the idx format: 0x08 is an unsigned byte.
IDX_UNSIGNED_BYTE = 0x08
MNIST_FILES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write handwritten digits in the MNIST format.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into; made if missing")
    parser.add_argument("--if-missing", action="store_true", help="do nothing where a dataset is there already")
    args = parser.parse_args()
    if args.if_missing and holds_mnist(args.output):
        return
    print(f"wrote {NUM_DIGITS} handwritten digits in place of MNIST to {write_mnist(args.output)}", flush=True)


def holds_mnist(root: Path) -> bool:
    """Whether ``root`` holds all of MNIST's files, unpacked, in torchvision's folder layout."""
    return all((root / "MNIST" / "raw" / name).is_file() for name in MNIST_FILES)


def write_mnist(root: Path) -> Path:
    """Write the training and test images and labels in the idx format; returns their folder."""
    folder = root / "MNIST" / "raw"
    images, digits = load_digit_images()
    num_train = len(images) - NUM_TEST_IMAGES
    parts = [images[:num_train], digits[:num_train], images[num_train:], digits[num_train:]]
    for name, values in zip(MNIST_FILES, parts, strict=True):
        write_idx(folder / name, values)
    return folder


def load_digit_images() -> tuple[numpy.ndarray, numpy.ndarray]:
    """The digits as N x 28 x 28 bytes, white on black, and their labels 0 to 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("the handwritten digits come with scikit-learn: pip install scikit-learn") from None

    images, digits = load_digits(return_X_y=True)
    gray = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(numpy.uint8)
    enlarged = gray.repeat(3, axis=1).repeat(3, axis=2)
    return numpy.pad(enlarged, ((0, 0), (2, 2), (2, 2))), digits.astype(numpy.uint8)


def write_idx(path: Path, values: numpy.ndarray) -> None:
    """Write bytes in the idx format: kind, number of dimensions and sizes (big-endian), then the values."""
    header = struct.pack(f">HBB{values.ndim}I", 0, IDX_UNSIGNED_BYTE, values.ndim, *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place, because several nodes may prepare the same shared folder at once.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.write_bytes(header + values.tobytes())
    temporary.replace(path)


if __name__ == "__main__":
    main()
