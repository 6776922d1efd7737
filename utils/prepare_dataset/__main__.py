"""`python -m utils.prepare_dataset <name>`: unpack, draw or fetch a dataset into DATASET_DIR."""

import argparse
import logging
import sys
from pathlib import Path

from utils.config import DATASET_ALIASES, dataset_root
from utils.errors import UserError
from utils.image_folders import scan
from utils.prepare_dataset import MAKERS, find_or_make_dataset


def main(arguments: list[str] | None = None) -> int:
    """Make one dataset; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.prepare_dataset", description=main.__doc__)
    parser.add_argument("name", help=f"{', '.join(MAKERS)}, or the name of an archive in the dataset folder")
    parser.add_argument("--dataset_dir", type=Path, default=dataset_root(), help="default: DATASET_DIR, else datasets/")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = DATASET_ALIASES.get(options.name, options.name)
    folder = options.dataset_dir / name
    try:
        find_or_make_dataset(name, folder, options.dataset_dir)
        folders, _ = scan(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{folder}: {sum(len(f.files) for f in folders)} images in {len(folders)} folders")
    return 0


if __name__ == "__main__":
    sys.exit(main())
