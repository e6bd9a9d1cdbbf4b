"""The picture at the top of README.md: queries of the demo, their shortlists by binary codes, and after re-ranking.

    python -m examples.teaser demo --output assets/teaser.png

It repeats the last two-stage evaluation in the folder that `make demo` wrote. It shows queries whose first match is
wrong by codes and correct after re-ranking, evenly spaced among all of these in the order of file names.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.benchmark import Benchmark
from datasets.layouts import BenchmarkConfig
from model import InputError, load_any_model
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, extract, prepare
from utils.retrieval.features import SearchResult
from utils.retrieval.metrics import correct_predictions
from utils.retrieval.report.pictures import Painter, Shown, save_picture
from utils.retrieval.report.saved_run import RESULTS, read_results
from utils.retrieval.search import search_and_rerank
from utils.runtime.atomic_files import make_folder
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main

ROWS = 3  # queries
COLUMNS = 5  # matches of each stage
PAINTER = Painter(cell=(135, 101), font_size=21)


def main() -> None:
    # ---- Arguments
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="the folder that `make demo` wrote")
    parser.add_argument("--output", type=Path, default=Path("teaser.png"), metavar="FILE", help="the picture, a PNG")
    args = parser.parse_args()

    # ---- Dataset, model and settings of the demo's last two-stage evaluation
    flags = read_results(last_run(args.demo))["arguments"]
    (name,) = flags["dataset_name"]
    dataset = Benchmark(
        BenchmarkConfig(
            name=name,
            datasets_folder=args.demo / flags["datasets_folder"],
            split=flags["split"],
            threshold=flags["val_positive_dist_threshold"],
        )
    )
    model = load_any_model(args.demo / flags["model"])
    settings = ExtractionConfig(resize=tuple(flags["resize"]), batch_size=flags["infer_batch_size"])
    extractor = Extractor(model=prepare(model, settings), config=settings)

    # ---- Codes and descriptors
    database = extract(extractor, dataset.database)
    queries = extract(extractor, dataset.queries)
    assert database is not None and queries is not None, "this script has one process"

    # ---- Search by codes, then re-rank by descriptors
    shortlist, reranked = search_and_rerank(database, queries, COLUMNS, rerank_num=flags["rerank_num"])

    # ---- Choose queries
    correct_codes = correct_predictions(shortlist.indices, dataset.positives)
    correct_reranked = correct_predictions(reranked.indices, dataset.positives)
    chosen = choose_queries(correct_codes, correct_reranked)

    # ---- Draw
    rows = []
    for row, query in enumerate(chosen):
        by_codes = matches(dataset, shortlist, correct_codes, query=query)
        by_descriptors = matches(dataset, reranked, correct_reranked, query=query)
        if row == 0:
            by_codes[0] = by_codes[0]._replace(heading="Shortlist by 512-bit codes (Hamming distance)")
            by_descriptors[0] = by_descriptors[0]._replace(heading="Re-ranked by float descriptors (L2 distance)")
        rows.append([Shown(dataset.queries.paths[query], ["Query"], "query"), None, *by_codes, None, *by_descriptors])
    note = describe(dataset, correct_codes, correct_reranked, backbone=model.config.backbone)
    make_folder(args.output.parent, exist_ok=True)
    save_picture(reduce_colors(PAINTER.draw(rows, note=note)), args.output)
    print(f"Picture: {args.output} ({args.output.stat().st_size / 1000:.0f} kB)")


def last_run(demo: Path) -> Path:
    """The folder of the last two-stage evaluation in the demo's folder. Raises InputError if there is none."""
    runs = sorted(demo.glob(f"logs/two_stage/*/{RESULTS}"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(
            f"No results of the demo in {demo}: expected logs/two_stage/<time>/results.json in it. Run `make demo`, "
            "and give the folder that it writes."
        )
    return runs[-1].parent


def choose_queries(correct_codes: np.ndarray, correct_reranked: np.ndarray) -> np.ndarray:
    """The indices of up to ROWS queries whose first match is wrong by codes and correct after re-ranking, evenly spaced
    among these. correct_...: bool [Q, K], of the matches of each stage. Raises InputError if there is no such query.
    """
    improved = np.flatnonzero(~correct_codes[:, 0] & correct_reranked[:, 0])
    if len(improved) == 0:
        raise InputError(
            f"None of the {len(correct_codes)} queries has a wrong first match by codes and a correct one after "
            "re-ranking. Train the model for longer, or evaluate more queries."
        )
    return improved[np.linspace(0, len(improved) - 1, min(ROWS, len(improved))).round().astype(int)]


def matches(dataset: Benchmark, result: SearchResult, correct: np.ndarray, *, query: int) -> list[Shown]:
    """The first COLUMNS matches of a query, with their distances. correct: bool [Q, K]."""
    distances, indices, metric = result.first(COLUMNS)
    captions = [format(d, ".0f" if m == "hamming" else ".2f") for d, m in zip(distances[query], metric, strict=True)]
    kinds = ["correct" if is_correct else "wrong" for is_correct in correct[query]]
    return [
        Shown(dataset.database.paths[match], [caption], kind)
        for match, caption, kind in zip(indices[query], captions, kinds, strict=False)
    ]


def reduce_colors(picture: Image.Image) -> Image.Image:
    """The picture with the 256 colours that suit it best, which makes its file a third of the size. They are chosen
    from a ninth of its pixels: all of them take much longer.
    """
    sample = picture.resize((picture.width // 3, picture.height // 3), Image.Resampling.NEAREST)
    colors = sample.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    return picture.quantize(palette=colors, dither=Image.Dither.NONE)


def describe(dataset: Benchmark, correct_codes: np.ndarray, correct_reranked: np.ndarray, *, backbone: str) -> str:
    """The note below the picture: what the frames mean, that the queries are chosen, and the recalls of all queries."""
    first_codes, first_reranked = correct_codes[:, 0], correct_reranked[:, 0]
    improved, worsened = (first_reranked & ~first_codes).sum(), (first_codes & ~first_reranked).sum()
    r1_codes, r1_reranked = 100 * first_codes.mean(), 100 * first_reranked.mean()
    threshold = dataset.config.threshold
    return (
        f"✔ green: within {threshold:g} m of the query.   ✘ red: farther away.   Selected examples, where "
        "re-ranking corrects the first match.\n"
        f"Re-ranking corrects {improved} of {len(first_codes)} first matches and worsens {worsened}. R@1 of {backbone} "
        f"on the dataset {dataset.name}: {r1_codes:.1f} by codes, {r1_reranked:.1f} after re-ranking."
    )


if __name__ == "__main__":
    cli_main(main)
