"""PlaceRecognizer against naive loops, the scripts' extraction and the scripts' search."""

import json
import threading
import warnings

import numpy as np
import pytest
import torch
from helpers.models import MODES, build, filled
from helpers.processes import NOT_TORCH, ROOT, run_python
from PIL import Image

from datasets.image_set import ImageSet
from model import Description, InputError, Loop, Place, PlaceRecognizer
from model.image_files import load_image
from model.images import rgb_pixels
from model.loops import suppress_loops
from model.rows import hamming_distances
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, extract, prepare
from utils.retrieval.features import Features
from utils.retrieval.search import search_and_rerank
from utils.retrieval.sequences import search_sequences

SIZE = (56, 70)
MODELS = {mode: filled(build("vit-nano", **flags)) for mode, flags in MODES.items()}


def recognizer_of(mode="two_branch", **settings):
    return PlaceRecognizer(MODELS[mode], resize=SIZE, **settings)


def photo(seed, height=90, width=120):
    """A made-up photo [H, W, 3] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return coarse.repeat(height // 9, axis=0).repeat(width // 12, axis=1)


def made_up(count, seed=0, mode="two_branch"):
    """A Description of images that do not exist, with many equal codes and some equal descriptors."""
    random = np.random.default_rng(seed)
    code = random.integers(0, 4, (count, 64), dtype=np.uint8) // 3 * 255
    descriptor = random.standard_normal((count, 512)).astype(np.float32).round(1)
    descriptor /= np.linalg.norm(descriptor, axis=1, keepdims=True).clip(1e-3)
    return Description(None if mode == "float" else code, None if mode == "hashing" else descriptor)


@pytest.mark.parametrize("mode", MODES)
def test_a_description_is_what_the_scripts_extract(tmp_path, mode):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(photo(i)).save(path)
    settings = ExtractionConfig(resize=SIZE, exif_orientation=True)
    expected = extract(
        Extractor(model=prepare(MODELS[mode], settings), config=settings), ImageSet.without_positions(paths)
    )
    description = recognizer_of(mode).describe(paths)
    for ours, theirs in zip(description, (expected.codes, expected.descriptors), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs)


def test_one_image_in_every_form(tmp_path):
    pixels, recognizer = photo(0), recognizer_of()
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=exif)
    forms = [
        tmp_path / "upright.png",
        str(tmp_path / "turned.png"),
        (tmp_path / "turned.png").read_bytes(),
        recognizer.prepare(pixels),
        Image.open(tmp_path / "turned.png"),
        Image.fromarray(pixels).convert("RGBA"),
        torch.from_numpy(pixels).permute(2, 0, 1),
        pixels[::-1][::-1],
    ]
    expected = recognizer.describe(pixels)
    for code, descriptor in zip(*recognizer.describe(forms), strict=True):
        assert np.array_equal(code, expected.code[0])
        np.testing.assert_allclose(descriptor, expected.descriptor[0], atol=1e-6)
    assert np.array_equal(recognizer.describe(pixels[:, :, ::-1], bgr=True).descriptor, expected.descriptor)
    grey = recognizer.describe([pixels[:, :, 0], pixels[:, :, :1].repeat(3, axis=2)]).descriptor
    np.testing.assert_allclose(grey[0], grey[1], atol=1e-6)


def test_files_are_read_as_the_scripts_read_them(tmp_path):
    """16 bits per channel, no end marker, and EXIF data that Pillow cannot read."""
    grey = (photo(0)[:, :, 0].astype(np.uint16) * 257).tobytes()
    Image.frombytes("I;16", (120, 90), grey).save(tmp_path / "deep.png")
    Image.fromarray(photo(1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-2])
    Image.fromarray(photo(2)).save(tmp_path / "exif.png", exif=b"Exif\0\0MM\0*\0\0")
    for name in ("deep.png", "cut.jpg", "exif.png"):
        expected = np.asarray(load_image(tmp_path / name, exif_orientation=True))
        assert np.array_equal(rgb_pixels(tmp_path / name), expected), name
        assert np.array_equal(rgb_pixels((tmp_path / name).read_bytes()), expected), name
    with Image.open(tmp_path / "exif.png") as image:
        assert np.array_equal(rgb_pixels(image), photo(2))
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(InputError, match="Cannot read the image"):
        rgb_pixels(image)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (photo(0) / 255, ["float64 [90, 120, 3]", "Multiply"]),
        (photo(0)[None], ["[1, 90, 120, 3]", "give a list"]),
        (np.zeros((9, 9, 4), np.uint8), ["uint8 [9, 9, 4]"]),
        (np.zeros((0, 9, 3), np.uint8), ["[0, 9, 3]"]),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), ["[9, 9, 3]", "[3, H, W]"]),
        ("no_such_file.jpg", ["no_such_file.jpg"]),
        (b"GIF89a", ["of 6 bytes", "not a JPEG or PNG"]),
        (Image.new("F", (9, 9)), ["type F"]),
        ({"image": 1}, ["dict"]),
    ],
)
def test_what_is_no_image_is_named_and_nothing_is_added(image, words):
    recognizer = recognizer_of()
    for given, place in ((image, ""), ([photo(0), image], "Image 1 of 2: ")):
        with pytest.raises(InputError) as caught:
            recognizer.add(given)
        assert str(caught.value).startswith(place) and all(word in str(caught.value) for word in words), caught.value
    assert len(recognizer) == 0 and recognizer.search(photo(0)) == [[]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.describe([]), "empty list"),
        (lambda r: r.search(photo(0), k=0), "k is 0"),
        (lambda r: r.search(photo(0), among=[7]), "no image 7"),
        (lambda r: r.remove([0, 7]), "no image 7"),
        (lambda r: r.search(photo(0), among=np.array([True])), "Ids of type bool"),
        (lambda r: r.find_loops(max_distance=1, min_gap=0), "min_gap 0"),
        (lambda r: r.find_loops(max_distance=1, suppress=-1), "suppress is -1"),
        (lambda r: r.find_loops(max_distance=np.nan), "max_distance is nan"),
        (lambda r: r.find_loops_between([0], [7], max_distance=1), "no image 7"),
        (lambda r: r.add(photo(0), times=["noon"]), "times: could not convert"),
        (lambda r: r.add(Description(made_up(1).code, 100 * made_up(1).descriptor)), "length 1"),
        (lambda r: r.find_loops([7], max_distance=1), "no image 7"),
        (lambda r: r.add(Description(None, made_up(1).descriptor)), "not one of this model"),
        (lambda r: r.search(Description(made_up(1).code, np.zeros((1, 100), np.float32))), "not one of this model"),
        (lambda r: r.add(Description(made_up(2).code, made_up(1).descriptor)), "not one of this model"),
        (lambda r: r.add(photo(0), names=["a", "b"]), r"names \[2\] for 1 images"),
        (lambda r: r.add(photo(0), positions=[[1, 2, 3]]), r"Expected \[1, 2\]"),
        (lambda r: r.add(photo(0), positions=[np.nan, 2]), "positions contains NaN"),
        (lambda r: r.add(photo(0), positions=[1e9, 2]), r"up to 1e\+08"),
        (lambda r: PlaceRecognizer("no_such_model"), "SelaVPRplusplus_base_rerank"),
        (lambda r: recognizer_of(precision="fp8"), "bf16"),
        (lambda r: recognizer_of(rerank_num=0), "rerank_num"),
    ],
)
def test_wrong_use_is_explained_and_changes_nothing(call, words):
    recognizer = recognizer_of()
    recognizer.add(made_up(1))
    with pytest.raises(InputError, match=words):
        call(recognizer)
    assert len(recognizer) == 1


@pytest.mark.parametrize("mode", MODES)
def test_searches_are_those_of_the_scripts(mode):
    recognizer, database, queries = recognizer_of(mode, rerank_num=20), made_up(3000, 1, mode), made_up(5, 2, mode)
    recognizer.add(database)
    images = ImageSet.without_positions([""] * 3000)
    rerank_num = 20 if mode == "two_branch" else 0
    *_, expected = search_and_rerank(
        Features(images, *database), Features(images[:5], *queries), 10, rerank_num=rerank_num
    )
    for found, rows, distances in zip(
        recognizer.search(queries, k=10), expected.indices, expected.distances, strict=True
    ):
        np.testing.assert_allclose([match.distance for match in found], distances[:10], atol=2e-6)
        if mode == "hashing":
            assert [match.id for match in found] == rows[:10].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_any_history_gives_what_a_dictionary_gives(mode):
    """A dictionary of images, and a search that sorts all of them."""
    random, recognizer, known = np.random.default_rng(5), recognizer_of(mode, rerank_num=15), {}
    for step in range(300):
        action = random.choice(["add", "remove", "search"], p=[0.4, 0.2, 0.4])
        if action == "add":
            features = made_up(int(random.integers(1, 40)), step, mode)
            names, positions = [f"{step}/{i}" for i in range(len(features))], random.random((len(features), 2))
            ids = recognizer.add(features, names=names, positions=positions, times=positions[:, 0])
            columns = [[None] * len(ids) if part is None else part for part in features]
            known |= dict(zip(ids, zip(names, positions.tolist(), *columns, strict=True), strict=True))
        elif action == "remove" and known:
            chosen = random.choice(list(known), size=min(len(known), 5), replace=False).tolist()
            recognizer.remove(chosen)
            for i in chosen:
                del known[i]
        else:
            k, query = int(random.integers(1, 30)), made_up(1, 1000 + step, mode)
            among = None if step % 3 else [i for i in known if i % 2]
            (found,) = recognizer.search(query, k, among=among)
            allowed = [i for i in known if among is None or i in among]
            expected = naive_search({i: known[i] for i in allowed}, query, k, max(k, 15))
            assert [(m.id, m.name) for m in found] == [(i, known[i][0]) for _, i in expected]
            np.testing.assert_allclose([m.distance for m in found], [d for d, _ in expected], atol=1e-6)
            assert all(list(m.position) == known[m.id][1] and m.time == known[m.id][1][0] for m in found)
    assert len(recognizer) == len(known) > 100


def naive_search(known, query, k, rerank_num):
    """(distance, id) of the k nearest images {id: (name, position, code, descriptor)} to a query."""
    order = list(known)
    if query.code is not None:
        bits = {i: int(np.unpackbits(known[i][2] ^ query.code[0]).sum()) for i in order}
        order = sorted(order, key=lambda i: (bits[i], i))[:rerank_num]
        if query.descriptor is None:
            return [(bits[i], i) for i in order[:k]]
    distances = {i: np.sqrt(np.square(known[i][3] - query.descriptor[0]).sum()) for i in order}
    return [(distances[i], i) for i in sorted(order, key=lambda i: distances[i])[:k]]


@pytest.mark.parametrize("has_count", [True, False])
def test_hamming_distances(monkeypatch, has_count):
    if not has_count:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    codes = np.random.default_rng(0).integers(0, 256, (20_000, 64), dtype=np.uint8)
    found = hamming_distances(np.ascontiguousarray(codes.view(np.uint64).T), codes[7].view(np.uint64))
    assert np.array_equal(found, np.unpackbits(codes ^ codes[7], axis=1).sum(axis=1))


@pytest.mark.parametrize("k", [1, 40, 313, 2000, 5000, 6000])
def test_many_equal_distances_are_in_the_order_of_ids(k):
    recognizer, rng = recognizer_of("hashing"), np.random.default_rng(0)
    bits = rng.integers(0, 2, (5000, 512)) * (np.arange(512) < 8)  # distances of 0 to 8
    codes = np.packbits(bits, axis=1)
    recognizer.add(Description(codes, None))
    [matches] = recognizer.search(Description(codes[:1], None), k)
    distances = np.unpackbits(codes ^ codes[0], axis=1).sum(axis=1)
    nearest = np.argsort(distances, kind="stable")[:k]
    assert [(match.id, match.distance) for match in matches] == [(i, distances[i]) for i in nearest]


def test_what_could_not_be_added_leaves_no_entry(monkeypatch, tmp_path):
    recognizer = recognizer_of()
    with monkeypatch.context() as patch:
        patch.setattr("model.rows._with_room", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recognizer.add(photo(0), names=["lost"])
    Image.fromarray(photo(1)).save(tmp_path / "kept.png")
    recognizer.add([tmp_path / "kept.png", photo(2)])
    assert [match.name for match in recognizer.search(photo(1))[0]] == [str(tmp_path / "kept.png"), None]


def test_equal_descriptors_are_found_in_the_order_of_ids():
    recognizer = recognizer_of("float")
    recognizer.add(Description(None, made_up(1, 0, "float").descriptor.repeat(500, axis=0)))
    assert [match.id for match in recognizer.search(made_up(1, 0, "float"))[0]] == [0, 1, 2, 3, 4]


def test_an_unknown_place_has_no_match():
    recognizer = recognizer_of()
    recognizer.add([photo(0), photo(1)], names=["square", "street"])
    (found,) = recognizer.search(photo(1), max_distance=0.01)
    assert [(match.name, match.metric) for match in found] == [("street", "l2")]
    assert recognizer.search([photo(2), photo(0)], max_distance=0.001)[0] == []


@pytest.mark.parametrize("mode", MODES)
def test_the_threshold_of_an_evaluation_decides_what_is_unknown(tmp_path, mode):
    recognizer = recognizer_of(mode)
    recognizer.add([photo(0), photo(1)], names=["square", "street"], positions=[[0, 0], [500, 7]])
    assert recognizer.locate(photo(1), max_distance=1000) == [Place((500.0, 7.0), None, 1)]
    metric = "hamming" if mode == "hashing" else "l2"
    points = {"95": {"distance": 0.01, "radius": 8, "accepted": 1}, "100": None}
    points["99"] = {"distance": 0, "radius": None, "accepted": 0}
    settings = {"weights_sha256": MODELS[mode].fingerprint, "image_size": SIZE, "antialias": True}
    settings |= {"descriptor_dim": 512, "test_method": "hard_resize", "queries": 9}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**settings, "first_match": {"metric": metric, "at_precision": points}}))
    assert len(recognizer.search(photo(2), k=2)[0]) == 2
    assert recognizer.accept(path, precision=95) == 0.01
    known, unknown = recognizer.search([photo(1), photo(2)])
    assert [match.name for match in known] == ["street"] and unknown == []
    assert len(recognizer.search(photo(2), k=2, max_distance=1000)[0]) == 2
    assert recognizer.locate([photo(1), photo(2)]) == [Place((500.0, 7.0), 8.0, 1), None]
    assert recognizer.locate(photo(1), max_distance=1) == [Place((500.0, 7.0), None, 1)]
    for precision, words in ((100, "no distance reached 100 %"), (98, "precision is 98")):
        with pytest.raises(InputError, match=words):
            recognizer.accept(path, precision=precision)
    path.write_text(path.read_text().replace(settings["weights_sha256"], "0" * 64))
    with pytest.raises(InputError, match="weights_sha256"):
        recognizer.accept(path)
    assert recognizer.search(photo(2)) == [[]]


@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_is_matched_as_the_scripts_do(tmp_path, mode):
    """Numbers of frames, and times that make the same order of other ids."""
    random, database, queries = np.random.default_rng(1), made_up(90, 1, mode), made_up(4, 2, mode)
    names = [f"tour_{i}.jpg" for i in range(90)]
    images = [ImageSet.without_positions(paths) for paths in (names, [f"query_{i}.jpg" for i in range(4)])]
    rerank_num = 100 if mode == "two_branch" else 0
    *_, frames = search_and_rerank(
        Features(images[0], *database), Features(images[1], *queries), 100, rerank_num=rerank_num
    )
    expected = search_sequences(frames, images[1], images[0], length=4)
    recognizer = recognizer_of(mode)
    recognizer.add(database, times=np.arange(90))
    found = recognizer.search_sequence(queries, k=7)
    np.testing.assert_allclose([match.distance for match in found], expected.distances[3, :7], atol=1e-5)
    assert {match.metric for match in found} == {expected.metric[0]}
    assert recognizer.search_sequence(queries, k=7, times=range(4)) == found
    shuffled, order = recognizer_of(mode), random.permutation(90)
    shuffled.add(Description(*(None if part is None else part[order] for part in database)), times=order)
    by_time = shuffled.search_sequence(queries, k=7, times=[10, 11, 12, 13])
    np.testing.assert_allclose([match.distance for match in by_time], [match.distance for match in found], atol=1e-5)
    limit = found[2].distance
    assert len(recognizer.search_sequence(queries, k=7, max_distance=limit)) == sum(
        match.distance <= limit for match in found
    )
    shuffled.add(made_up(1, 5, mode))
    with pytest.raises(InputError, match="Image 90 has no time"):
        shuffled.search_sequence(queries, times=range(4))
    assert recognizer_of(mode).search_sequence(queries) == []


def test_a_threshold_of_sequences_applies_to_as_many_frames(tmp_path):
    recognizer, path = recognizer_of("float"), tmp_path / "calibration.json"
    recognizer.add([photo(0), photo(1), photo(2)])
    settings = {"weights_sha256": MODELS["float"].fingerprint, "image_size": SIZE, "antialias": True}
    settings |= {"descriptor_dim": 512, "test_method": "hard_resize", "queries": 9}
    points = dict.fromkeys(("95", "99", "100"), {"distance": 0.01, "radius": None, "accepted": 1})
    path.write_text(json.dumps({**settings, "first_match": {"metric": "l2_mean2", "at_precision": points}}))
    with pytest.raises(InputError, match=r"metric l2_mean2 \(now l2\)"):
        recognizer.accept(path)
    assert recognizer.accept(path, frames=2) == 0.01
    assert [match.id for match in recognizer.search_sequence([photo(1), photo(2)])] == [2]
    assert recognizer.search_sequence([photo(2), photo(5)]) == [] and len(recognizer.search(photo(5))[0]) == 3
    assert len(recognizer.search_sequence([photo(0), photo(1), photo(5)])) == 3


def test_a_place_is_the_middle_of_the_matches_that_agree():
    recognizer, angles = recognizer_of("float"), np.array([0, 0.5, 0.51, 0.52, 0.53])
    views = np.zeros((5, 512), np.float32)
    views[:, 0], views[:, 1] = np.cos(angles), np.sin(angles)
    recognizer.add(Description(None, views[1:]), positions=[[7000, 0], [0, 0], [20, 0], [0, 20]])
    recognizer.add(made_up(20, 1, "float"))  # without positions
    (place,) = recognizer.locate(Description(None, views[:1]))
    distances = 2 * np.sin(angles[2:] / 2)
    weights = np.exp(-(distances / (2 * np.sin(0.25)) - 1) / 0.1)
    expected = np.average([[0, 0], [20, 0], [0, 20]], axis=0, weights=weights)
    assert place.position == pytest.approx(tuple(expected), abs=1e-3) and place.matches == 3
    assert recognizer_of("float").locate(photo(0)) == [None]


def test_loops_of_a_tour_that_returns():
    """A tour of 80 places, of which the last 30 were seen at its beginning, against a naive search for loops."""
    places = made_up(50, 3).descriptor
    tour = np.concatenate([places, places[:30]]) + np.random.default_rng(4).normal(0, 1e-3, (80, 512)).astype(
        np.float32
    )
    recognizer = recognizer_of("float")
    recognizer.add(Description(None, tour))
    naive = []
    for i in range(80):
        distances = np.linalg.norm(tour[: max(i - 40 + 1, 0)] - tour[i], axis=1)
        naive += [(float(distances[j]), i, j) for j in np.argsort(distances, kind="stable")[:2] if distances[j] <= 0.2]
    kept = []
    for distance, i, j in sorted(naive):
        if not any(abs(i - a) < 10 and abs(j - b) < 10 for _, a, b in kept):
            kept.append((distance, i, int(j)))
    loops = recognizer.find_loops(range(80), max_distance=0.2, min_gap=40, suppress=10, k=2)
    assert [(loop.id, loop.earlier) for loop in loops] == sorted((i, j) for _, i, j in kept)
    assert len(loops) >= 3 and {(loop.id - loop.earlier) for loop in loops} == {50}
    (online,) = recognizer.find_loops(60, max_distance=0.2)
    assert online[:2] == Loop(60, 10, 0)[:2]
    recognizer.remove([60, *range(9)])
    with pytest.raises(InputError, match="no image 60"):
        recognizer.find_loops([60], max_distance=0.2)
    kept = recognizer.find_loops(max_distance=0.2, min_gap=40, suppress=1)
    assert [(loop.id, loop.earlier) for loop in kept] == [(i, i - 50) for i in range(59, 80) if i != 60]


def test_loops_between_two_sequences_are_those_of_a_loop_over_both():
    """A second camera drives the same 60 places backwards, after 40 others."""
    places, others = made_up(60, 3).descriptor, made_up(40, 5).descriptor
    noise = np.random.default_rng(4).normal(0, 1e-3, (60, 512)).astype(np.float32)
    recognizer = recognizer_of("float")
    first = recognizer.add(Description(None, places))
    recognizer.remove(30)
    second = recognizer.add(Description(None, np.concatenate([others, places[::-1] + noise])))
    given = [i for i in first if i != 30]
    loops = recognizer.find_loops_between(second, given, max_distance=0.2, suppress=0)
    assert [(loop.id, loop.earlier) for loop in loops] == [(159 - i, i) for i in range(59, -1, -1) if i != 30]
    thinned = recognizer.find_loops_between(second, given, max_distance=0.2, suppress=10)
    assert 3 <= len(thinned) <= 10 and set(thinned) <= set(loops)
    assert recognizer.find_loops_between(second, given, max_distance=0.0001) == []
    with pytest.raises(InputError, match="no image 30"):
        recognizer.find_loops_between(second, first, max_distance=0.2)


@pytest.mark.parametrize("suppress", [0, 1, 3, 25])
def test_the_suppression_is_that_of_a_loop_over_all_pairs(suppress):
    random = np.random.default_rng(suppress)
    for _ in range(50):
        loops = [Loop(int(i), int(j), float(d)) for i, j, d in random.integers(0, 60, (150, 3)) // [1, 1, 6]]
        kept = []
        for loop in sorted(loops, key=lambda loop: loop.distance):
            if all(abs(loop.id - o.id) >= suppress or abs(loop.earlier - o.earlier) >= suppress for o in kept):
                kept.append(loop)
        assert suppress_loops(loops, suppress) == sorted(kept)


def test_one_thread_adds_while_others_search():
    recognizer, problems = recognizer_of(), []
    done = threading.Event()

    def search():
        while not done.is_set():
            for found in recognizer.search(made_up(3, 9), k=5):
                if any(match.name != str(match.id) for match in found) or len({m.id for m in found}) < len(found):
                    problems.append(found)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(200):
        ids = recognizer.add(made_up(50, step), names=[str(i) for i in range(step * 50, step * 50 + 50)])
        recognizer.remove(ids[::7])
    done.set()
    for thread in threads:
        thread.join()
    assert not problems and len(recognizer) == 200 * 42


def test_a_program_with_modules_of_the_same_names_needs_torch_numpy_and_pillow_alone(tmp_path):
    for name in ("model", "utils", "datasets"):
        (tmp_path / f"{name}.py").write_text(f"OWNER = 'the program: {name}'")
    torch.save(MODELS["two_branch"].state_dict(), tmp_path / "weights.pth")
    Image.fromarray(photo(0)).save(tmp_path / "frame.png")
    code = f"""
import torch, numpy as np
recognizer = torch.hub.load({str(ROOT)!r}, "PlaceRecognizer", "weights.pth", resize=(56, 70), source="local",
                            trust_repo=True)
ids = recognizer.add(["frame.png", np.zeros((90, 120, 3), np.uint8)], names=["street", "dark"])
[match], = recognizer.search("frame.png", k=1)
import model, utils, datasets
print(ids, match.name, round(match.distance, 5), model.OWNER, utils.OWNER, datasets.OWNER)
"""
    without = tuple(name for name in NOT_TORCH if name != "PIL")
    result = run_python(code, cwd=tmp_path, without=without, env={"PYTHONPATH": str(tmp_path)})
    assert result.stdout == "[0, 1] street 0.0 the program: model the program: utils the program: datasets\n", (
        result.stderr
    )


def test_positions_that_look_like_degrees_are_warned_of():
    recognizer = recognizer_of()
    with pytest.warns(UserWarning, match="All positions are small"):
        recognizer.add(made_up(2), positions=[(48.8566, 2.3522), (48.857, 2.353)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recognizer.add(made_up(2), positions=[(0, 0), (3.5, 1.2)])  # of a map that begins at its origin
        recognizer.add(made_up(1), positions=[(448251.8, 5411943.8)])
