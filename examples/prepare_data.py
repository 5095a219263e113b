"""Prepare real data for the examples without the internet: scikit-learn's 1,797 handwritten digits.

    python examples/prepare_data.py --output data

writes them in the three formats that the examples read, each as its official archive unpacks:

    data/cifar-10-batches-py/    data/cifar-100-python/    data/MNIST/raw/
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

EXAMPLES_DIR = Path(__file__).resolve().parent
WRITERS = {
    "cifar10": ("cifar", "write_cifar10"),
    "cifar100": ("cifar", "write_cifar100"),
    "mnist": ("pth-lightning", "write_mnist"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write into; made if missing")
    parser.add_argument("--format", choices=[*WRITERS, "all"], default="all")
    args = parser.parse_args()
    for name in WRITERS if args.format == "all" else [args.format]:
        print(f"{name}: {write_format(name, args.output)}")


def write_format(name: str, root: Path) -> Path:
    """Write the digits in one of ``WRITERS``' formats below ``root``; returns the folder with the files."""
    example, function = WRITERS[name]
    # Each example carries its own writer, so that its folder alone can be submitted.
    return runpy.run_path(str(EXAMPLES_DIR / example / "prepare_data.py"))[function](root)


if __name__ == "__main__":
    main()
