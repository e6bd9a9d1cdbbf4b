"""Find the places of single photos: the best matches of each in an index, with positions and distances."""
from model import InputError
from utils.arguments import parse_search
from utils.evaluation import load_model, search
from utils.features import ExtractionSettings, extract
from utils.files import make_folder
from utils.index import Index, make_header
from utils.logs import run_script
from utils.pictures import draw_matches
from utils.retrieval import rerank


def main() -> None:
    # ---- Arguments
    args = parse_search(__doc__)
    if args.save_pictures:
        make_folder(args.save_pictures, exist_ok=True)

    # ---- Index, and the model that made it
    index = Index(args.index, check=not args.trust_index)
    made = index.header["model"]
    settings = ExtractionSettings(tuple(index.header["settings"]["resize"]), index.header["settings"]["antialias"], args.infer_batch_size,
                                  device=args.device, precision=args.precision)
    weights = args.resume or index.weights
    if weights is not None and not weights.exists():
        raise InputError(f"the weights {weights} of the model that made {args.index} are not there: say with --resume where they are")
    model = load_model(made["backbone"], made["aggregation"], made["hashing"], made["rerank"], weights, args.device)
    index.check_made_by(make_header(model, made["backbone"], made["aggregation"], weights, settings, "fp32"))

    # ---- Extraction, search, re-ranking
    queries = extract(model, args.photos, settings)
    found = search(index.features(), queries, max(args.results, args.rerank_num if model.rerank else 0), progress=False)
    distances, predictions, metric = found
    if model.rerank:
        distances, predictions = rerank(distances, predictions, index.descriptors, queries.descriptors, args.rerank_num, progress=False)

    # ---- Report
    for i, photo in enumerate(args.photos):
        print(f"\n{photo}")
        print(f"{'rank':>4}  {'distance':>16}  {'easting':>12}  {'northing':>12}  photo")
        matches = predictions[i, :args.results]
        for rank, (match, distance) in enumerate(zip(matches, distances[i], strict=False)):
            kind = "l2" if model.rerank and rank < args.rerank_num else metric
            easting, northing = index.utms[match]
            print(f"{rank + 1:>4}  {distance:>8.4g} {kind:<7}  {easting:>12.2f}  {northing:>12.2f}  {index.photos[match]}")
        if args.save_pictures:
            captions = [f"{rank + 1}: {distance:.4g}\n{easting:.0f} E  {northing:.0f} N"
                        for rank, (distance, (easting, northing)) in enumerate(zip(distances[i], index.utms[matches], strict=False))]
            path = args.save_pictures / f"{i + 1:03d}_{photo.stem}.png"
            draw_matches(path, photo, [index.photos[match] for match in matches], captions)
            print(f"Picture: {path}")


if __name__ == "__main__":
    run_script(main)
