"""Turn any usual form of a dataset, on disk or at an address, into a dataset folder: `python -m utils.prepare_dataset
<name>`.
"""

import argparse
import sys

from utils.data_sources import write_task_lists
from utils.episodes.drawing import SPLITS
from utils.errors import ConfigError, prints_user_errors
from utils.images.folders import scan
from utils.known_datasets import KNOWN_DATASETS, known_by_folder
from utils.paths import command, dataset_root, expanded
from utils.prepare_dataset import find_or_make_dataset
from utils.prepare_dataset.catalogue import GENERIC, MostSamples
from utils.prepare_dataset.glyphs import preparation as glyphs
from utils.prepare_dataset.preparation import Request, prepare
from utils.words import is_whole_number, log_to_terminal, printable, say


def _parser() -> argparse.ArgumentParser:
    forms = [f"  {name}: {known.forms}" for name, known in KNOWN_DATASETS.items() if known.forms]
    forms += [f"  {name}: {text}" for name, text in GENERIC.items()]
    parser = argparse.ArgumentParser(
        prog=command("prepare_dataset"),
        description="Make a dataset folder. Nothing that is there is changed; a killed run is gone on with; a second "
        "run verifies.",
        epilog="what --from may be:\n"
        + "\n".join(forms)
        + "\n\n`tasks` as the dataset writes fixed test tasks, `glyphs` draws fonts and icons; `tasks --help` and "
        "`glyphs --help` say more",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepared = [name for name, known in KNOWN_DATASETS.items() if known.forms]
    names = ", ".join([*prepared, *GENERIC, "synthetic_strokes"])
    parser.add_argument("dataset", help=f"{names}, or the name of an archive in the dataset folder")
    parser.add_argument(
        "--from", dest="location", metavar="PATH|ADDRESS", help="folder, archive, or http address of one"
    )
    parser.add_argument("--sha256", metavar="HEX", help="digest that the file of --from must have")
    parser.add_argument(
        "--to",
        "--dataset_dir",
        dest="to",
        type=expanded,
        default=dataset_root(),
        help="default: DATASET_DIR, else datasets/",
    )
    parser.add_argument(
        "--splits", type=expanded, metavar="FOLDER", help="folder of the split lists, if they are not beside the images"
    )
    parser.add_argument("--name", help="name of the dataset folder (default: the known one, or that of --from)")
    parser.add_argument(
        "--max_samples_per_class",
        metavar="N",
        help="draw at most N images per class, by seed; train=20,val=100,test=100 limits each split",
    )
    parser.add_argument("--seed", type=int, help="of that draw, of quickdraw's split (default 123) and of cub's")
    parser.add_argument(
        "--channels", choices=("auto", "rgb", "bgr"), default="auto", help="of tiered-ImageNet's arrays"
    )
    parser.add_argument(
        "--accept_counts", action="store_true", help="accept other numbers of classes and images than published"
    )
    return parser


@prints_user_errors
def main(arguments: list[str] | None = None) -> int:
    """Prepare one dataset, or write the test tasks of one with `tasks`; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    own = {"tasks": write_task_lists.main, "glyphs": glyphs.main}
    if arguments[:1] and arguments[0] in own:
        return own[arguments[0]](arguments[1:])
    options = _parser().parse_args(arguments)
    log_to_terminal()
    try:
        say(_prepare(options))
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


def _prepare(options: argparse.Namespace) -> str:
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed {options.seed}: must be 0 to {2**32 - 1}.")
    dataset = known_by_folder(options.dataset).name or options.dataset
    if dataset in GENERIC or (dataset in KNOWN_DATASETS and KNOWN_DATASETS[dataset].forms):
        request = Request(
            dataset, options.to, options.location, options.sha256, options.splits, options.name,
            parse_most_samples(options.max_samples_per_class), options.seed, options.channels, options.accept_counts,
        )  # fmt: skip
        return prepare(request)
    if options.location is not None:
        raise ConfigError(
            f'"{printable(options.dataset)}" is not known here, so --from needs a form: '
            f"{', '.join(GENERIC)}, with --name {printable(options.dataset)}."
        )
    folder = options.to / options.dataset
    find_or_make_dataset(options.dataset, folder, options.to)
    folders, _ = scan(folder)
    return f"{printable(folder)}: {sum(len(f.files) for f in folders)} images in {len(folders)} folders"


def parse_most_samples(text: str | None) -> MostSamples:
    """Parse "20" or "train=20,val=100,test=100" as split (None: each) -> number."""
    if text is None:
        return {}
    most: dict[str | None, int] = {}
    for part in text.split(","):
        split, equals, count = part.rpartition("=")
        if not is_whole_number(count) or int(count) < 1 or (equals and split not in SPLITS) or (split or None) in most:
            raise ConfigError(
                f"--max_samples_per_class {text}: must be a number from 1 on, or such as train=20,val=100,test=100."
            )
        most[split or None] = int(count)
    if None in most and len(most) > 1:
        raise ConfigError(f"--max_samples_per_class {text}: give one number, or one for each split.")
    return most


if __name__ == "__main__":
    sys.exit(main())
