"""Training places from your own geotagged photos, in the GSV-Cities format, with a validation and a test part.

Example: `python -m datasets.places PHOTOS --output PLACES`.
Positions come from file names, EXIF data, or a CSV file; headings too, if they are known. Look at PLACES/places.html.
"""

from collections.abc import Sequence

from datasets.places.config import OwnPhotosConfig
from datasets.places.photos import read_photos
from datasets.places.planning import plan_places
from datasets.places.writing import write_places
from utils.retrieval.report.places_page import places_page
from utils.runtime.atomic_files import atomic_folder, make_folder, require_new_folder
from utils.runtime.parser import parse
from utils.runtime.script import cli_main

MAX_BATCH = 120  # places, the paper's


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InputError if photos or output cannot be used."""
    config = parse(OwnPhotosConfig, __doc__, argv=argv, module="datasets.places")
    output = config.output.absolute()
    require_new_folder(output)
    make_folder(output.parent, exist_ok=True)
    plan = plan_places(read_photos(config), config)
    with atomic_folder(output) as folder:
        files = write_places(plan, folder, config)
        places_page(plan, config, files).write(folder / "places.html")
    for what, count in plan.counts().items():
        print(f"{what}: {count}")
    for reason, names in plan.reasons().items():
        print(f"left out: {len(names):,}, {reason}")
    print(f"\nLook at {config.output / 'places.html'}.")
    if {"val", "test"} <= plan.splits.keys():
        batch = max(2, min(MAX_BATCH, len(plan.places()) // 10))
        flags = f"--datasets_folder={config.output} --dataset_name={config.name} --val_datasets={config.name}"
        print("Then train, as docs/own_photos.md says:")
        print(f"python train.py {flags} --training_dataset=all --train_batch_size={batch}")


if __name__ == "__main__":
    cli_main(main, when_stopped="nothing was written")
