"""Write scikit-learn's 1,797 handwritten digits as CIFAR-10 and CIFAR-100 files, without the internet.

    python prepare_data.py --output DIR                makes DIR/cifar-10-batches-py and DIR/cifar-100-python
    python prepare_data.py --output DIR --if-missing   leaves a DIR that holds CIFAR-10 or CIFAR-100 alone

The digits are 8 x 8 gray images; here each pixel becomes 4 x 4 pixels of three equal channels.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import socket
from pathlib import Path
from typing import Any, ClassVar

import numpy

NUM_DIGITS = 1797
NUM_TEST_IMAGES = 297
CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
CIFAR100_FILES = ["train", "test", "meta"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write handwritten digits in the CIFAR-10 and CIFAR-100 formats.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into; made if missing")
    parser.add_argument("--if-missing", action="store_true", help="do nothing where a dataset is there already")
    args = parser.parse_args()
    if args.if_missing and holds_cifar(args.output):
        return
    folders = write_cifar10(args.output), write_cifar100(args.output)
    print(f"wrote {NUM_DIGITS} handwritten digits in place of CIFAR to {folders[0]} and {folders[1]}", flush=True)


def holds_cifar(root: Path) -> bool:
    """Whether ``root`` holds a complete CIFAR-10 or CIFAR-100, directly or in the archive's folder."""
    candidates = [
        (root / "cifar-10-batches-py", CIFAR10_FILES),
        (root / "cifar-100-python", CIFAR100_FILES),
        (root, CIFAR10_FILES),
        (root, CIFAR100_FILES),
    ]
    return any(all((folder / name).is_file() for name in names) for folder, names in candidates)


def write_cifar10(root: Path) -> Path:
    """Write ``data_batch_1`` to ``data_batch_5``, ``test_batch`` and ``batches.meta``; returns their folder."""
    folder = root / "cifar-10-batches-py"
    rows, digits = load_digit_rows()
    train_rows, train_digits = rows[:-NUM_TEST_IMAGES], digits[:-NUM_TEST_IMAGES]
    batches = [
        (f"data_batch_{i}", f"training batch {i} of 5", batch_rows, batch_digits)
        for i, (batch_rows, batch_digits) in enumerate(
            zip(numpy.array_split(train_rows, 5), numpy.array_split(train_digits, 5), strict=True), start=1
        )
    ]
    batches.append(("test_batch", "testing batch 1 of 1", rows[-NUM_TEST_IMAGES:], digits[-NUM_TEST_IMAGES:]))
    num_written = 0
    for name, label, batch_rows, batch_digits in batches:
        content = {
            "batch_label": label,
            "labels": batch_digits.tolist(),
            "data": batch_rows,
            "filenames": [f"digit_{num_written + i:04d}.png" for i in range(len(batch_rows))],
        }
        num_written += len(batch_rows)
        _write_pickle(folder / name, content)
    meta = {
        "num_cases_per_batch": len(batches[0][2]),
        "label_names": [str(digit) for digit in range(10)],
        "num_vis": 3072,
    }
    _write_pickle(folder / "batches.meta", meta)
    return folder


def write_cifar100(root: Path) -> Path:
    """Write ``train``, ``test`` and ``meta``: fine labels are the digits, coarse labels even and odd."""
    folder = root / "cifar-100-python"
    rows, digits = load_digit_rows()
    parts = {
        "train": ("training batch 1 of 1", slice(0, len(rows) - NUM_TEST_IMAGES)),
        "test": ("testing batch 1 of 1", slice(len(rows) - NUM_TEST_IMAGES, len(rows))),
    }
    for name, (label, part) in parts.items():
        content = {
            "batch_label": label,
            "filenames": [f"digit_{i:04d}.png" for i in range(part.start, part.stop)],
            "fine_labels": digits[part].tolist(),
            "coarse_labels": (digits[part] % 2).tolist(),
            "data": rows[part],
        }
        _write_pickle(folder / name, content)
    meta = {
        "fine_label_names": [str(digit) for digit in range(10)],
        "coarse_label_names": ["even", "odd"],
    }
    _write_pickle(folder / "meta", meta)
    return folder


def load_digit_rows() -> tuple[numpy.ndarray, numpy.ndarray]:
    """The digits as rows of 3,072 bytes (red, green and blue planes of 32 x 32) and their labels 0 to 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("the handwritten digits come with scikit-learn: pip install scikit-learn") from None

    images, digits = load_digits(return_X_y=True)
    gray = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(numpy.uint8)
    enlarged = gray.repeat(4, axis=1).repeat(4, axis=2)
    rows = numpy.repeat(enlarged.reshape(-1, 1, 1024), 3, axis=1).reshape(-1, 3072)
    return rows, digits


class _Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, because readers of CIFAR expect exactly that.

    Some load the files with encoding "bytes" and ask for ``b"data"``, others with "latin1" and ask for "data".
    """

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(value)

    dispatch[str] = _save_string
    dispatch[bytes] = _save_string


def _write_pickle(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place, because several nodes may prepare the same shared folder at once.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


if __name__ == "__main__":
    main()
