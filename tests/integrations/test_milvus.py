"""An index in Milvus: what is exported is what is found, as in the folder; a real server in a network of its own."""

import contextlib
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.evaluations import SCRIPTS, flags_for
from helpers.milvus import TOKEN, LivingIndex, assert_same_results, is_copy, write
from helpers.models import build
from helpers.processes import run_here, run_script
from helpers.services import ASSETS, DATABASE, QUERIES, served

from benchmarks.milvus_server import MilvusProcess, missing
from datasets.image_set import ImageSet
from model import InputError, ModelConfig, PlaceRecognizer
from model.weights import model_content
from utils.integrations.milvus import collections, export_index, open_index, reader, writer
from utils.retrieval.config import AcceptConfig, EngineAddress, ExtractionConfig, IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter, metadata_of
from utils.retrieval.index import open_index as open_any_index
from utils.retrieval.search import search_hamming
from utils.service.engine_library import EngineLibrary
from utils.service.library import CannotSearch, FolderLibrary

pytestmark = pytest.mark.slow

ROWS, DIM = 2500, 512  # three chunks, the last one incomplete
REASON = missing()
SETTINGS = {  # it asks for a token, and looks for new collections and rows more often than by default
    "common.security.authorizationEnabled": "true",
    "proxy.timeTickInterval": 50,
    "queryCoord.checkInterval": 100,
    "queryCoord.distPullInterval": 100,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that ends with these tests."""
    if REASON:
        pytest.skip(f"no Milvus server can be started here: {REASON}")
    server = MilvusProcess(tmp_path_factory.mktemp("milvus"), **SETTINGS)
    yield server
    server.close()


@pytest.fixture(scope="module")
def address(server):
    """address(name): where an index of this name is, or will be."""
    return lambda name: EngineAddress.parse(f"milvus://{server.address}/{name}", token=TOKEN)


@pytest.fixture(scope="module")
def model():
    return build("vit-tiny", hashing=True, rerank=True).eval()


@pytest.fixture(scope="module")
def metadata(model):
    return metadata_of(model, ExtractionConfig(resize=(56, 56)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, metadata, address):
    """An index, and the address of its copy, in which rows lie in another order."""
    index = write(tmp_path_factory.mktemp("index") / "index", metadata, ROWS)
    write_chunk = writer._write_chunk

    def write_first_rows_again(collections, original, rows):
        """Of equal rows, Milvus finds first what it got first. So the first rows come last."""
        write_chunk(collections, original, rows)
        if rows[-1] == ROWS - 1:
            write_chunk(collections, original, np.arange(1024))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_write_chunk", write_first_rows_again)
        assert export_index(index, address("exported")) == (ROWS, 0)
    return index, address("exported")


@pytest.mark.parametrize("k", [1, 100, ROWS + 7])
def test_a_copy_gives_the_results_of_the_folder(exported, k):
    index, address = exported
    copy = open_any_index(address)
    assert len(copy) == ROWS and copy.metadata == index.metadata
    assert_same_results(index, copy, k)
    for name in ("utms", "zones", "degrees"):
        expected, actual = (np.asarray(getattr(images, name)) for images in (index.images, copy.images))
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype


@pytest.mark.parametrize("max_rows", [350, 700])
def test_equal_distances_beyond_what_milvus_returns_are_in_order(exported, monkeypatch, max_rows):
    """A code occurs some 600 times: more often than 350 rows, and the distances of two neighbours fill 700."""
    index, address = exported
    monkeypatch.setattr(reader, "MAX_ROWS", max_rows)
    assert_same_results(index, open_any_index(address), 100)
    with pytest.raises(InputError, match=f"at most {max_rows} results"):
        search_hamming(open_any_index(address).features().codes, index.features().codes[:1], max_rows + 1)


def test_paths_are_read_together_and_positions_only_where_asked_for(exported, monkeypatch):
    index, address = exported
    images = (copy := open_any_index(address)).images
    search_hamming(copy.features().codes, index.features().codes[:1], 100)
    requests = []
    rows = copy._collections.rows
    monkeypatch.setattr(copy._collections, "rows", lambda *args: requests.append(args[1]) or rows(*args))
    found = search_hamming(index.features().codes, index.features().codes[:1], 100).indices[0]
    assert [images.paths[i] for i in found] == [index.images.paths[i] for i in found]
    np.testing.assert_array_equal(images.utms[found], index.images.utms[found])
    assert [sorted(ids) for ids in requests] == [sorted(found)]


@pytest.mark.parametrize(("mode", "shards"), [("hashing", 1), ("two_branch", 4), ("float", 1)])
def test_evaluations_and_searches_give_the_same_predictions(
    tmp_path, server, tiny_benchmark, checkpoints, mode, shards
):
    where, env = f"milvus://{server.address}/{mode}", {"MILVUS_TOKEN": TOKEN}
    flags = flags_for(tiny_benchmark, checkpoints[mode], *([] if mode == "hashing" else ["--rerank_num=7"]))
    codes = ["--codes=random", "--code_bits=24"] if mode == "float" else []

    def run(script, *flags):
        result = run_script(script, *flags, cwd=tmp_path, env=env)
        assert result.status == 0, result.stderr
        return result.stdout

    run(SCRIPTS[mode], *flags, *codes, "--save_index=index")
    assert "16 images, 0 were there" in run(
        "export.py", "milvus", "--index=index", f"--to={where}", f"--shards={shards}"
    )
    run(SCRIPTS[mode], *flags, f"--load_index={where}", "--save_dir=copy", "--num_workers=2")
    expected, actual = (next(tmp_path.glob(f"logs/{run}/*")) for run in ("eval", "copy"))
    assert (actual / "predictions.csv").read_bytes() == (expected / "predictions.csv").read_bytes()
    expected, actual = (json.loads((folder / "results.json").read_text()) for folder in (expected, actual))
    assert actual["recalls"] == expected["recalls"] and actual["database"] == expected["database"] == 16
    if mode != "hashing":
        query = next((tiny_benchmark / "tiny/images/test/queries").iterdir())
        flags = [query, "--accept=index/calibration.json", "--device=cpu"]  # which a copy does not have
        printed = [run("search.py", f"--index={index}", *flags) for index in ("index", where)]
        assert printed[0].splitlines()[1:] == printed[1].splitlines()[1:] and "l2" in printed[0]
    else:
        flags = flags_for(tiny_benchmark, checkpoints["two_branch"], f"--load_index={where}")
        result = run_here("eval_rerank.py", *flags, cwd=tmp_path, env=env)
        assert result.status == 2 and "was built with another model" in result.stderr
        assert "rerank False (now True)" in result.stderr


class Interrupted(Exception):
    pass


def test_a_copy_follows_an_index_that_lives(tmp_path, metadata, address, monkeypatch):
    """Rows are added, replaced and removed, the files compacted, and exports interrupted at any request."""
    living, target, random = LivingIndex(tmp_path / "index", metadata, 0), address("living"), np.random.default_rng(0)
    call, left = collections.Connection.call, [0]

    def fail_later(self, method, *args, **options):
        left[0] -= 1
        if not left[0]:
            raise Interrupted
        return call(self, method, *args, **options)

    monkeypatch.setattr(collections.Connection, "call", fail_later)
    monkeypatch.setattr(writer, "CHUNK_SIZE", 20)
    index = None
    for step in range(4):
        for kind in ("remove", "replace", "add", "compact")[: step + 1]:
            living.change(kind)
        before, index = index, Index(living.folder)
        for most in (15, 40):  # requests
            left[0] = int(random.integers(3, most))
            with contextlib.suppress(Interrupted):
                export_index(index, target, append=True)
            left[0] = 0
            if before:
                copy = open_index(target)
                expected = next(state for state in (before, index) if is_copy(state, copy))
                assert_same_results(expected, copy, 30)
        export_index(index, target, append=step > 0)
        assert export_index(index, target) == (0, 0)
        assert_same_results(index, open_index(target), 30)


def test_an_export_continues_where_it_was_interrupted(tmp_path, metadata, address, monkeypatch):
    metadata = replace(metadata, model=ModelConfig(backbone="vit-tiny", hashing=True), descriptor_dim=0)
    index, target = write(tmp_path / "index", metadata, ROWS), address("interrupted")
    write_chunk, written = writer._write_chunk, []

    def write_two(collections, original, rows):
        if rows[0] == 2048:
            raise Interrupted
        written.append((rows[0], len(rows)))
        write_chunk(collections, original, rows)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_chunk", write_two)
        with pytest.raises(Interrupted):
            export_index(index, target)
    with pytest.raises(InputError, match=r"incomplete.*Run export\.py milvus again"):
        open_index(target)
    assert export_index(index, target) == (ROWS - 2048, 0) and written == [(0, 1024), (1024, 1024)]
    assert_same_results(index, open_index(target), 100)

    # A second export changes nothing, and more images need --append.
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_chunk", None)
        assert export_index(index, target) == export_index(index, target, append=True) == (0, 0)
        longer = write(tmp_path / "index", metadata, ROWS + 100)
        with pytest.raises(InputError, match="it lacks 100 images, and 0 of its.*--append"):
            export_index(longer, target)
        with pytest.raises(InputError, match="--shards 3: .* exists with 1"):
            export_index(longer, target, append=True, shards=3)
        other = write(tmp_path / "other", metadata, ROWS, seed=1)
        for append in (False, True):
            with pytest.raises(InputError, match="holds another index"):
                export_index(other, target, append=append)
    assert len(open_index(target)) == ROWS
    assert export_index(longer, target, append=True) == (100, 0)
    assert_same_results(longer, open_index(target), 100)

    # Rows that are lost afterwards are noticed.
    collections = open_index(target)._collections
    collections.connection.call("delete", collections.codes, ids=[5])
    with pytest.raises(InputError, match=f"damaged: interrupted holds {ROWS + 99} rows"):
        open_index(target)
    with pytest.raises(InputError, match="holds 1 of 2 rows"):
        collections.rows(collections.codes, [4, 5], ["path"])


@pytest.mark.parametrize("part", ["paths", "utms", "zones", "degrees", "codes", "descriptors", "count"])
def test_rows_that_differ_after_an_export_are_noticed(exported, part):
    index, address = exported
    features, collections = index.features(), open_index(address)._collections
    writer._verify(collections, writer.Original(index.ids, features), ROWS)
    if part == "paths":
        images = replace(features.images, paths=["/other.jpg", *features.images.paths[1:]])
    elif part in ("utms", "zones", "degrees"):
        images = replace(features.images, **{part: getattr(features.images, part) + 1})
    else:
        images = features.images
    codes = features.codes ^ 1 if part == "codes" else features.codes
    descriptors = features.descriptors[:] + 1 if part == "descriptors" else features.descriptors
    original = writer.Original(index.ids, Features(images, codes, descriptors))
    with pytest.raises(InputError, match="instead of 2499" if part == "count" else "Rows of .* differ"):
        writer._verify(collections, original, ROWS - (part == "count"))


def test_collections_of_others_are_refused(address, exported):
    index, target = exported
    open_index(target)._collections.connection.call("create_collection", "alone_descriptors", dimension=8)
    for use in (open_index, lambda address: export_index(index, address)):
        with pytest.raises(InputError, match="alone_descriptors at .* was not written by"):
            use(address("alone_descriptors"))
    with pytest.raises(InputError, match="alone_descriptors exists already"):
        export_index(index, address("alone"))
    with pytest.raises(InputError, match=r"No index .*nothing.*export.py milvus"):
        open_index(address("nothing"))


def test_what_milvus_cannot_hold_is_refused(tmp_path, metadata, address):
    float_only = replace(metadata, model=ModelConfig(backbone="vit-tiny"), code_bits=0)
    with IndexWriter(IndexConfig(folder=tmp_path / "float"), float_only) as index_writer:
        index_writer.append(Features(ImageSet.without_positions(["/a.jpg"]), None, np.ones((1, DIM), np.float32)))
        index_writer.features()
    with pytest.raises(InputError, match="no codes"):
        export_index(Index(tmp_path / "float"), address("float"))
    with pytest.raises(InputError, match="not UTF-8"):
        writer.require_text(os.fsdecode(b"/\xff.jpg"))
    with pytest.raises(InputError, match="has 66001 bytes"):
        writer.require_text("/" + 33000 * "é")


@pytest.mark.parametrize("token", ["", "root:wrong"])
def test_a_wrong_token_is_refused(exported, token):
    with pytest.raises(InputError, match="refuses the token. Set MILVUS_TOKEN"):
        open_index(replace(exported[1], token=token))


@pytest.mark.skipif(REASON is not None and "pymilvus" in REASON, reason=str(REASON))
@pytest.mark.parametrize("scheme", ["milvus", "milvus+tls"])
def test_no_server(scheme):
    with pytest.raises(InputError, match="No Milvus server answers at 127.0.0.1:1. Start it"):
        open_index(EngineAddress.parse(f"{scheme}://127.0.0.1:1/index"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match="needs the package pymilvus.*pip install -r requirements-milvus.txt"):
        open_index(EngineAddress.parse("milvus://127.0.0.1:1/index"))


@pytest.mark.parametrize(
    "text",
    [
        *(f"milvus://host{rest}" for rest in ("/name", ":0/name", ":70000/name", ":19530", ":19530/", ":19530/9a")),
        *("milvus://host:19530/a-b", "milvus://host:1/a/b", "milvus://root:Milvus@host:19530/a", "qdrant://host:1/a"),
    ],
)
def test_other_addresses_are_refused(text):
    with pytest.raises(InputError, match="is not the address of an index. Expected milvus://HOST:PORT/NAME"):
        EngineAddress.parse(text)


def test_an_address_is_printed_without_secrets(tmp_path):
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    address = EngineAddress.parse("milvus+tls://[::1]:19530/a_1", token="secret", tls_ca=certificate)
    assert str(address) == "milvus+tls://[::1]:19530/a_1" and "secret" not in repr(address)
    with pytest.raises(InputError, match="is not encrypted. Use milvus"):
        EngineAddress.parse("milvus://a:1/b", tls_ca=certificate)
    with pytest.raises(InputError, match="No file"):
        EngineAddress.parse("milvus+tls://a:1/b", tls_ca=tmp_path / "missing")


WHERE = "milvus://localhost:1/x"


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("eval.py", [f"--load_index={WHERE}", "--trust_index"], "--trust_index applies"),
        ("eval_rerank.py", [f"--save_index={WHERE}"], "export.py milvus writes one"),
        ("eval_hashing.py", [f"--load_index={WHERE}", "--ivf", "2", "1"], "--ivf applies to an index in a folder"),
        ("eval_rerank.py", [f"--load_index={WHERE}", "--trust_index"], "--trust_index applies"),
        ("eval_rerank.py", [f"--load_index={WHERE}", "--allow_incomplete_index"], "--allow_incomplete_index applies"),
        ("search.py", [f"--index={WHERE}", "a.jpg", "--trust_index"], "--trust_index applies"),
        ("export.py", ["npy", f"--index={WHERE}", "--output=out"], "is not a folder"),
        ("export.py", ["milvus", "--index=a", "--to=b"], "is not the address"),
        ("export.py", ["milvus", "--index=a", f"--to={WHERE}", "--shards=17"], "invalid choice: 17"),
        ("export.py", ["milvus", "--index=a", f"--to={WHERE}"], "No index in a"),
        ("export.py", ["milvus", "--index=a", f"--to={WHERE}", "--tls_ca=b"], "is not encrypted"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, script, flags, words):
    model = ["--backbone=vit-tiny", "--resume=a", "--resize", "56", "56", "--datasets_folder=a", "--device=cpu"]
    result = run_here(script, *flags, *(model if script.startswith("eval") else []), cwd=tmp_path)
    assert result.status == 2 and words in " ".join(result.stderr.split()), result.stderr


@pytest.fixture(scope="module")
def places(tmp_path_factory, address):
    """A folder of an index of photos, its recogniser, and the address of its copy, as the tests leave them."""
    folder = tmp_path_factory.mktemp("places") / "index"
    recognizer = PlaceRecognizer(ASSETS / "model.safetensors")
    recognizer.add(DATABASE[:11], positions=[list(map(float, image.name.split("@")[1:3])) for image in DATABASE[:11]])
    recognizer.remove(4)  # so that ids have gaps
    recognizer.save(folder)
    export_index(Index(folder), address("places"))
    return folder, recognizer, address("places")


def engine_library(address, model=None, **accept):
    return EngineLibrary(address, model, AcceptConfig(**accept), device="cpu", rerank_num=100)


@pytest.mark.proof
def test_a_service_answers_from_a_copy_as_from_the_folder(places):
    folder, recognizer, address = places
    for limit in (None, 1.0):
        ours = FolderLibrary(recognizer, folder, AcceptConfig(max_distance=limit))
        theirs = engine_library(address, max_distance=limit)
        for query in QUERIES:
            description = recognizer.describe(query)
            for k, stated in ((3, None), (10, 0.9)):
                (expected, place, threshold), found = (each.find(description, k, stated) for each in (ours, theirs))
                assert found.limit == threshold and len(found.matches) == k
                for theirs_match, our_match in zip(found.matches, expected, strict=True):
                    assert theirs_match.distance == pytest.approx(our_match.distance, abs=1e-5)
                    assert theirs_match._replace(distance=0) == our_match._replace(distance=0)
                assert (found.place is None) == (place is None)
                if place:
                    assert found.place.position == pytest.approx(place.position, abs=1e-2)
        assert [theirs.image_file(i) for i in (0, 5, 10)] == [ours.image_file(i) for i in (0, 5, 10)]
        for i in (4, 99, -1):
            with pytest.raises(InputError, match="no image"):
                theirs.image_file(i)
        np.testing.assert_array_equal(theirs.known().positions, ours.known().positions)
        assert theirs.known().ids.tolist() == ours.known().ids.tolist()


@pytest.mark.proof
def test_the_service_serves_a_copy(places, tmp_path):
    pytest.importorskip("fastapi", reason="the packages of requirements-serve.txt are not installed")
    _, recognizer, address = places
    prelude = f"import os; os.environ['MILVUS_TOKEN'] = '{TOKEN}'"
    with served(address, cwd=tmp_path, prelude=prelude) as service:
        [[expected]] = recognizer.search(QUERIES[3], k=1)
        found = service.search(QUERIES[3], "?k=1").content["matches"][0]
        assert (found["id"], found["name"]) == (expected.id, os.path.basename(expected.name))
        assert service.ask("GET", f"/images/{expected.id}").headers["content-type"] == "image/jpeg"
        assert service.ask("GET", "/images/4").status == 404
        assert b"which of 10 images" in service.ask("GET", "/").body
        assert service.ask("POST", "/images", QUERIES[3].read_bytes()).status == 404
    result = run_script("serve.py", f"--index={address}", "--writable", cwd=tmp_path)
    assert result.status == 2 and "--writable applies to an index in a folder" in result.stderr


@pytest.mark.proof
def test_a_service_finds_what_an_export_has_added_and_answers_while_the_copy_is_gone(places):
    folder, recognizer, address = places
    library = engine_library(address)
    recognizer.remove([0, 1])
    recognizer.add(DATABASE[11])
    recognizer.save(folder)
    export_index(Index(folder), address, append=True)
    found = library.find(recognizer.describe(DATABASE[11]), 1, None)  # without a refresh
    if found.matches[0].id != 11:  # the rows that were found are still there
        library.refresh()
        found = library.find(recognizer.describe(DATABASE[11]), 1, None)
    assert found.matches[0].id == 11 and len(library) == 9 and library.reopened == 1
    library._index._collections.connection.call("drop_collection", address.name)
    library.refresh()
    assert "no such collection" in library.problem
    with pytest.raises(CannotSearch):
        library.find(recognizer.describe(DATABASE[11]), 1, None)
    library._index._collections.connection.call("drop_collection", f"{address.name}_descriptors")
    export_index(Index(folder), address)
    library.refresh()
    assert library.problem is None
    assert library.find(recognizer.describe(DATABASE[11]), 1, None).matches[0].id == 11


def test_a_server_that_dies_is_reported(tmp_path, exported, model, server):
    """The last test: the server stays away."""
    index, address = exported
    torch.save(model_content(model), tmp_path / "model.pth")
    copy, library = open_any_index(address), engine_library(address, str(tmp_path / "model.pth"))
    description = library.recognizer.describe(QUERIES[0])
    expected = PlaceRecognizer.open(index.folder, model).search(description, 5)[0]
    assert [match.id for match in library.find(description, 5, None).matches] == [match.id for match in expected]
    server.kill()
    with pytest.raises(CannotSearch):
        library.find(description, 5, None)
    assert "No Milvus server answers at" in library.problem
    with pytest.raises(InputError, match="No Milvus server answers at"):
        search_hamming(copy.features().codes, index.features().codes[:1], 10)
    with pytest.raises(InputError, match="No Milvus server answers at"):
        export_index(index, address)
