"""Training data: the images of places and batches, what is random and from what it is drawn, bad input."""

import numpy as np
import pytest
import torch
from helpers.training_places import image_name, row_of, write_csv
from PIL import Image
from torch.utils.data import DataLoader

from datasets.cities import COLUMNS, GROUPED_CITIES, TRAINING_DATASETS, training_order
from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities, PlaceBatches, collate_places
from model import InputError

SIZE = (28, 42)
CITIES = {  # photos of each place
    "Oslo": {0: 4, 1: 6, 2: 3, 7: 4, 9: 5},
    "Rome": {0: 5, 1: 4, 3: 1, 4: 4},
    "Bergen": {1: 4, 5: 4, 6: 2, 8: 9},
}


@pytest.fixture
def folder(tmp_path):
    """The cities above. Red, green, blue of a photo: 50 x number of the city, 20 x place id, 25 x its own number."""
    for c, (city, places) in enumerate(CITIES.items()):
        (tmp_path / "Images" / city).mkdir(parents=True)
        numbers = [(place, number) for place, photos in places.items() for number in range(photos)]
        write_csv(tmp_path, city, [row_of(city, *photo) for photo in numbers])
        for place, number in numbers:  # PNGs, which keep the colours: the name decides nothing
            Image.new("RGB", (60, 40), (50 * c, 20 * place, 25 * number)).save(
                tmp_path / "Images" / image_name(city, place, number), "PNG"
            )
    return tmp_path


def dataset(folder, cities=CITIES, **settings):
    return GSVCities(folder, PlacesConfig(cities=tuple(cities), image_size=SIZE, **settings))


@pytest.fixture
def data(folder):
    return dataset(folder)


def without_augmentation(data):
    """The same, its photos [3, 1, 1] of their plain colour."""
    data.transform = lambda photo: torch.tensor(photo.getpixel((0, 0)), dtype=torch.uint8).view(3, 1, 1)
    return data


def colours(images):
    """Images [K, 3, 1, 1] -> (city, place id, number) of each, by the colours above."""
    return [tuple(int(v) // step for v, step in zip(image.flatten(), (50, 20, 25), strict=True)) for image in images]


def same_batches(left, right):
    return len(left) == len(right) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.unreadable == b.unreadable
        for a, b in zip(left, right, strict=True)
    )


def load(data, batches, num_workers=0):
    """All batches from the position of `batches` on."""
    return list(DataLoader(data, batch_sampler=batches, num_workers=num_workers, collate_fn=collate_places))


def test_names_of_the_images(tmp_path):
    (tmp_path / "Images" / "Oslo").mkdir(parents=True)
    first = [12, 2013, 5, 7, "Oslo", "59.910", "-10.70", "a_b-c"]
    write_csv(tmp_path, "Oslo", [first, [12, 987, 11, 359, "Oslo", "60", "1e1", "d"]])
    data = dataset(tmp_path, ["Oslo"], images_per_place=2)
    names = ["Oslo/Oslo_0000012_2013_05_007_59.91_-10.7_a_b-c.jpg", "Oslo/Oslo_0000012_0987_11_359_60.0_10.0_d.jpg"]
    assert data.places == [names]


def test_columns_in_another_order_and_more_of_them(tmp_path):
    (tmp_path / "Images" / "Oslo").mkdir(parents=True)
    row = dict(zip(COLUMNS, row_of("Oslo", 3, 1), strict=True)) | {"note": "x"}
    columns = ["note", *reversed(COLUMNS)]
    rows = [row, row | {"panoid": "other"}]
    write_csv(tmp_path, "Oslo", [[row[column] for column in columns] for row in rows], columns)
    names = [image_name("Oslo", 3, 1), image_name("Oslo", 3, 1).replace("pano1", "other")]
    assert dataset(tmp_path, ["Oslo"], images_per_place=2).places == [names]


def test_rows_that_repeat_an_image_are_dropped_and_counted(folder, caplog):
    """They would make a positive pair of an image with itself."""
    expected = dataset(folder).places
    rows = [row_of("Oslo", place, number) for place, photos in CITIES["Oslo"].items() for number in range(photos)]
    repeated = [rows[5], rows[0], [f"0{rows[0][0]}", *rows[0][1:]]]  # the last one is written differently
    write_csv(folder, "Oslo", [rows[0], *rows[:8], *repeated, *rows[8:]])
    assert not caplog.records
    assert dataset(folder).places == expected
    (record,) = caplog.records
    assert "Oslo.csv: 4 rows describe an image that an earlier row describes" in record.getMessage()


def test_places_with_too_few_images_are_left_out_and_numbers_are_distinct_over_cities(data):
    expected = [
        (city, place, photos) for city, places in CITIES.items() for place, photos in places.items() if photos >= 4
    ]
    names = [[image_name(city, place, number) for number in range(photos)] for city, place, photos in expected]
    assert data.places == names
    assert len(data) == len(expected) == 10
    assert data.num_images == sum(photos for _, _, photos in expected)
    assert data.city_places == [range(0, 4), range(4, 7), range(7, 10)]
    without_augmentation(data)
    for label, (city, place, _) in enumerate(expected):  # three cities share the place id 1
        sample = data[0, label]
        assert sample.label == label
        assert {photo[:2] for photo in colours(sample.images)} == {(list(CITIES).index(city), place)}


def test_images_of_a_place_are_different_and_drawn_from_all(data):
    without_augmentation(data)
    seen, order = set(), set()
    for epoch in range(30):
        numbers = [photo[2] for photo in colours(data[epoch, 9].images)]
        assert len(set(numbers)) == 4
        seen.update(numbers)
        order.add(tuple(numbers))
    assert seen == set(range(9)) and len(order) > 20


def test_an_item_depends_on_seed_epoch_and_place_alone(folder, data):
    first = data[3, 5].images
    assert first.shape == (4, 3, *SIZE) and first.dtype == torch.uint8
    torch.manual_seed(99)
    state = torch.get_rng_state()
    data[0, 1]
    assert torch.equal(dataset(folder)[3, 5].images, first)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it change what others draw
    for other in (data[4, 5], dataset(folder, seed=1)[3, 5]):
        assert not torch.equal(other.images, first)


def order_of(batches, epoch):
    batches.set_position(epoch)
    listed = list(batches)
    assert {key[0] for batch in listed for key in batch} == {epoch}
    return [key[1] for batch in listed for key in batch]


def test_batches_run_city_by_city_in_a_new_order_every_epoch():
    cities = [range(0, 40), range(40, 50), range(50, 110)]
    batches = PlaceBatches(cities, 10, seed=5)
    orders = [order_of(batches, epoch) for epoch in range(4)]
    for order in orders:
        for city in cities:
            assert sorted(order[city.start : city.stop]) == list(city)
            assert order[city.start : city.stop] != list(city)
    assert len(set(map(tuple, orders))) == 4
    assert order_of(PlaceBatches(cities, 10, seed=5), 2) == orders[2]
    assert order_of(PlaceBatches(cities, 10, seed=6), 2) != orders[2]
    assert order_of(batches, 0) == orders[0]


def test_the_incomplete_last_batch_is_left_out():
    batches = PlaceBatches([range(0, 7), range(7, 17)], 5)
    assert len(batches) == batches.num_batches == 3
    assert [len(batch) for batch in batches] == [5, 5, 5]
    assert len({place for batch in batches for _, place in batch}) == 15


def test_position():
    batches = PlaceBatches([range(0, 7), range(7, 17)], 3)
    whole = {}
    for epoch in (0, 4):
        batches.set_position(epoch)
        whole[epoch] = list(batches)
        assert len(whole[epoch]) == 5
    batches.set_position(4, 2)
    assert len(batches) == 3 and list(batches) == whole[4][2:]
    batches.set_position(0, 5)
    assert len(batches) == 0 and list(batches) == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_the_ranks_make_up_the_batch(ranks):
    cities = [range(0, 20), range(20, 31)]
    whole = PlaceBatches(cities, 6, seed=2)
    shares = [PlaceBatches(cities, 6, seed=2, rank=rank, world_size=ranks) for rank in range(ranks)]
    for epoch, first in ((0, 0), (3, 2)):
        for batches in (whole, *shares):
            batches.set_position(epoch, first)
            assert len(batches) == 5 - first
        assert [sum(parts, []) for parts in zip(*shares, strict=True)] == list(whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_do_not_depend_on_workers_nor_on_a_restart(data, num_workers):
    batches = PlaceBatches(data.city_places, 2)
    batches.set_position(1)
    expected = [collate_places([data[key] for key in keys]) for keys in batches]
    assert len(expected) == 5
    for batch in expected:
        assert batch.images.shape == (8, 3, *SIZE) and batch.labels.shape == (8,)
        assert batch.labels.tolist() == batch.labels[::4].repeat_interleave(4).tolist()
    torch.manual_seed(num_workers)
    assert same_batches(load(data, batches, num_workers), expected)
    batches.set_position(1, 3)
    assert same_batches(load(data, batches, num_workers), expected[3:])


def test_an_unreadable_image_is_replaced_by_another_of_its_place(folder, data):
    without_augmentation(data)
    broken, missing = image_name("Bergen", 8, 2), image_name("Bergen", 8, 5)
    (folder / "Images" / broken).write_bytes((folder / "Images" / broken).read_bytes()[:60])
    (folder / "Images" / missing).unlink()
    reported = set()
    for epoch in range(20):
        sample = data[epoch, 9]
        numbers = [photo[2] for photo in colours(sample.images)]
        assert len(set(numbers)) == 4 and not {2, 5} & set(numbers)
        reported.update(sample.unreadable)
    assert len(reported) == 2
    for name in (broken, missing):
        assert sum(name in reason for reason in reported) == 1


def test_a_place_with_too_few_readable_images_is_skipped(folder, data):
    (folder / "Images" / image_name("Rome", 1, 3)).write_text("no photo")
    batch = collate_places([data[0, 4], data[0, 5], data[0, 6]])
    assert batch.labels.tolist() == [4] * 4 + [6] * 4
    assert batch.images.shape == (8, 3, *SIZE)
    assert len(batch.unreadable) == 1 and image_name("Rome", 1, 3) in batch.unreadable[0]
    nothing = collate_places([data[0, 5]])
    assert len(nothing.images) == len(nothing.labels) == 0 and len(nothing.unreadable) == 1


def test_cities_of_the_datasets():
    gsv, unified = TRAINING_DATASETS["gsv_cities"], TRAINING_DATASETS["unified_dataset"]
    assert len(gsv) == len(set(gsv)) == 23
    assert len(unified) == len(set(unified)) == 23 + 1 + 23 * 18 - 2
    assert {*gsv, "SFXL", "Trondheim0", "Pitts30k17", "Amman16", "Nairobi16", "boston17"} <= set(unified)
    assert not {"Amman17", "Nairobi17", "Trondheim18", "Trondheim"} & set(unified)


def base_city(name):
    """The city of a group, "Trondheim" of "Trondheim3"; another name as it is."""
    return next((city for city in GROUPED_CITIES if name.removeprefix(city).isdigit()), name)


def shared_batches(cities, batch_size, places=53):
    """How many batches hold two groups of one city."""
    batches = PlaceBatches([range(places * i, places * (i + 1)) for i in range(len(cities))], batch_size)
    count = 0
    for batch in batches:
        groups = {cities[place // places] for _, place in batch}
        count += len({base_city(name) for name in groups}) < len(groups)
    return count


def test_the_order_of_the_unified_dataset_is_the_references():
    """SFXL, the 23 cities of GSV-Cities, then all cities' group 0, all cities' group 1, ..."""
    unified = TRAINING_DATASETS["unified_dataset"]
    assert unified[:24] == ["SFXL", *TRAINING_DATASETS["gsv_cities"]]
    assert unified[24:28] == ["Trondheim0", "Amsterdam0", "Helsinki0", "Tokyo0"]
    assert unified[46:48] == ["Pitts30k0", "Trondheim1"] and unified[-1] == "Pitts30k17"
    groups = [int(name.removeprefix(base_city(name))) for name in unified[24:]]
    assert groups == sorted(groups)


@pytest.mark.parametrize("batch_size", [7, 50, 120, 500])
def test_no_batch_holds_two_groups_of_one_city_where_that_can_be_avoided(batch_size):
    """Two groups hold neighbouring cells of one grid, that is, one place under two labels."""
    unified = TRAINING_DATASETS["unified_dataset"]
    assert shared_batches(unified, batch_size) == 0
    assert shared_batches(sorted(unified), batch_size) > 0  # the order decides
    some = [
        f"{city}{group}" for city in ("Tokyo", "Paris", "Goa", "boston", "Pitts30k", "Berlin") for group in range(4)
    ]
    if batch_size < 5 * 53:  # otherwise a batch is larger than the cities between two groups
        assert shared_batches(training_order(some), batch_size) == 0
        assert shared_batches(some, batch_size) > 0


def test_chosen_cities_come_in_the_order_of_the_unified_dataset():
    chosen = ["Tokyo1", "Rome", "Tokyo0", "SFXL", "Paris1", "Rome"]
    assert training_order(chosen) == ["SFXL", "Rome", "Tokyo0", "Tokyo1", "Paris1"]
    assert training_order(["Cedar", "Alder", "Cedar", "Bangkok"]) == ["Cedar", "Alder", "Bangkok"]


def refuse(*words, make):
    with pytest.raises(InputError) as caught:
        make()
    for word in words:
        assert str(word) in str(caught.value), word


def test_missing_folders(folder, tmp_path):
    refuse(tmp_path / "nowhere", make=lambda: dataset(tmp_path / "nowhere", ["Oslo"]))
    (folder / "Images").rename(folder / "Pictures")
    refuse(folder / "Images", make=lambda: dataset(folder, ["Oslo"]))
    (folder / "Dataframes").rename(folder / "Tables")
    refuse(folder / "Dataframes", make=lambda: dataset(folder, ["Oslo"]))


def test_all_missing_cities_in_one_error(folder):
    wanted = ["Oslo", "Paris", "Rome", "SFXL", "Goa0"]
    refuse("Paris, SFXL, Goa0", "3", "Dataframes", "Oslo", "Rome", make=lambda: dataset(folder, wanted))
    for city in ("Rome", "Bergen"):
        (folder / "Images" / city).rename(folder / "Images" / f"{city}_")
    refuse("Rome, Bergen", "2", "Images", make=lambda: dataset(folder))
    refuse(
        "Dataframes/<City>.csv of 2 cities (Paris, SFXL)",
        "Images/<City> of 3 cities (Paris, Rome, SFXL)",
        make=lambda: dataset(folder, ["Oslo", "Paris", "Rome", "SFXL"]),
    )


def test_missing_columns(folder):
    write_csv(folder, "Rome", [[1, 2013, "Rome", 12.5]], ["place_id", "year", "city_id", "lon"])
    refuse("Rome.csv", "month, northdeg, lat, panoid", make=lambda: dataset(folder))
    (folder / "Dataframes" / "Rome.csv").write_text("")
    refuse("Rome.csv", "place_id", make=lambda: dataset(folder))


@pytest.mark.parametrize(
    "broken",
    [
        [1, 2013, 5, "north", "Rome", 1.0, 2.0, "x"],
        [1, 2013, 5, 90, "Rome", 1.0],
        ["", 2013, 5, 90, "Rome", 1.0, 2.0, "x"],
    ],
)
def test_a_number_that_is_none(folder, broken):
    write_csv(folder, "Rome", [row_of("Rome", 1, 0), broken])
    refuse("Rome.csv", "line 3", make=lambda: dataset(folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1,2013,5,90,Rome,1,2,a\0b", "a NUL byte"),
        (b'1,2013,5,90,Rome,1,2,"x\n2,2013,5,90,Rome,1,2,y\n', "Check its quotes"),
        (b"1" * 400 + b",2013,5,90,Rome,1,2,x", "a file name has at most 255"),
        (b"1" * 5000 + b",2013,5,90,Rome,1,2,x", "number is missing or invalid: 1111"),
        (b"1,2013,5,90,Rome,1,2," + b"x" * 300, "at most 255"),
    ],
    ids=["nul", "open quote", "400 digits", "5000 digits", "long name"],
)
def test_a_csv_file_that_is_none(folder, content, words):
    path = folder / "Dataframes" / "Rome.csv"
    start = ",".join(COLUMNS) + "\n1,2013,5,90,Rome,1.0,2.0,x\n"
    path.write_bytes(start.encode() + content)
    refuse(path, "line 3", words, make=lambda: dataset(folder))


def test_a_byte_order_mark_and_quotes_are_read(folder):
    path = folder / "Dataframes" / "Rome.csv"
    expected = dataset(folder).places
    header, *rows = path.read_text().splitlines()
    quoted = [",".join(f'"{value}"' for value in row.split(",")) for row in rows]
    path.write_text("\n".join(["\ufeff" + header, *quoted]), encoding="utf-8")
    assert dataset(folder).places == expected


def test_no_place_with_enough_images(folder):
    refuse("10", "9", "--images_per_place", "Oslo, Rome, Bergen", make=lambda: dataset(folder, images_per_place=10))
    write_csv(folder, "Rome", [])
    refuse("Rome", "4", "0", make=lambda: dataset(folder, ["Rome"]))


def test_a_city_without_enough_images_beside_others(folder):
    write_csv(folder, "Rome", [])
    assert dataset(folder).city_places == [range(0, 4), range(4, 4), range(4, 7)]


def test_a_batch_larger_than_all_places():
    assert len(PlaceBatches([range(0, 4), range(4, 10)], 10)) == 1
    refuse("--train_batch_size 11", "10 places", make=lambda: PlaceBatches([range(0, 4), range(4, 10)], 11))


def test_a_batch_that_does_not_split_over_the_ranks():
    refuse("--train_batch_size 9", "2 ranks", make=lambda: PlaceBatches([range(0, 20)], 9, rank=0, world_size=2))


def test_the_augmentation_is_on(data):
    """RandAugment changes most of the plainly coloured photos; without it a photo of one colour stays one."""
    images = torch.cat([data[epoch, 9].images for epoch in range(10)])
    changed = [
        image for image in images.numpy() if np.ptp(image, axis=(1, 2)).any() or tuple(image[:2, 0, 0]) != (100, 160)
    ]
    assert len(changed) > len(images) / 2
