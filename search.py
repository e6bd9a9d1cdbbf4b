"""Find the places of single images: the best matches of each in an index, with positions and distances."""

from math import isfinite

from datasets.benchmark import ImageSet
from model import InputError
from model.weights import load_model
from utils.cli import parse_search
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import extract
from utils.retrieval.index import IndexMetadata, read_index
from utils.retrieval.search import rerank, search
from utils.runtime.atomic_files import make_folder
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main() -> None:
    args = parse_search(__doc__)
    if args.save_pictures:
        make_folder(args.save_pictures, exist_ok=True)

    # ---- The index, and the model that it was built with
    index = read_index(args.index, verify=not args.trust_index, allow_incomplete=args.allow_incomplete_index)
    print(f"The index {args.index} holds {len(index)} images.")
    weights = args.resume or index.weights
    if weights is not None and not weights.exists():
        raise InputError(f"The model of the index {args.index} is not at {weights}. Give its path with --resume.")
    model = load_model(index.metadata.model_config, weights, device=args.device)
    settings = ExtractionConfig(
        resize=index.metadata.size,
        antialias=index.metadata.antialias,
        batch_size=args.infer_batch_size,
        device=args.device,
        precision=args.precision,
        exif_orientation=args.exif_orientation,
    )
    index.require_compatible(IndexMetadata.of(model, settings))

    # ---- Search, and re-ranking if the model is a two-branch one
    database = index.features()
    queries = extract(model, ImageSet.without_positions(args.images), settings)
    assert queries is not None, "this script has one process"
    rerank_num = args.rerank_num if model.config.rerank else 0
    results = search(database, queries, max(args.results, rerank_num))
    if rerank_num:
        results = rerank(results, database.descriptors, queries.descriptors, rerank_num=rerank_num)

    # ---- Report
    distances, indices, metric = results.first(args.results)
    for i, image in enumerate(args.images):
        matches = [index.images.paths[match] for match in indices[i]]
        positions = index.images.utms[indices[i]]
        print(printable(f"\n{image}"))
        print(f"{'rank':>4}  {'distance':>16}  {'easting':>12}  {'northing':>12}  image")
        for rank, (match, (easting, northing)) in enumerate(zip(matches, positions, strict=True)):
            distance = f"{distances[i, rank]:>8.4g} {metric[rank]:<7}"
            position = (
                f"{easting:>12.2f}  {northing:>12.2f}" if isfinite(easting) else f"{'unknown':>12}  {'unknown':>12}"
            )
            print(f"{rank + 1:>4}  {distance}  {position}  {printable(match)}")
        if args.save_pictures:
            from utils.visualization import draw_matches  # loads matplotlib

            captions = [
                f"{rank + 1}: {distances[i, rank]:.4g}"
                + (f"\n{easting:.0f} E  {northing:.0f} N" if isfinite(easting) else "")
                for rank, (easting, northing) in enumerate(positions)
            ]
            picture = args.save_pictures / f"{i + 1:03d}_{image.stem}.png"
            draw_matches(picture, image, matches, captions=captions)
            print(printable(f"Picture: {picture}"))


if __name__ == "__main__":
    cli_main(main)
