"""How large the experiments are."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the cities, budget of each training run, and what is varied.

    places: training places of each domain, a multiple of 3; photos_per_place; val_places, test_places: places of each
    domain's benchmark, with database_photos and queries each. foundation_places, foundation_epochs: what the backbone
    is trained with. photo_size: (width, height) in pixels; image_size: (H, W) that the models get. batch_size: places
    per batch. learning_rates: to choose from on the validation places. seeds: of the runs. bits: code lengths.
    rerank_nums: numbers of candidates. timed_database: images in the database whose search is timed. rounds: of
    timings.
    """

    places: int = 402
    photos_per_place: int = 4
    val_places: int = 60
    test_places: int = 250
    database_photos: int = 2
    queries: int = 2
    foundation_places: int = 1000
    foundation_epochs: int = 8
    photo_size: tuple[int, int] = (112, 76)
    image_size: tuple[int, int] = (56, 84)
    batch_size: int = 16
    epochs: int = 4
    learning_rates: tuple[float, ...] = (2e-4, 6e-4, 2e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    bits: tuple[int, ...] = (128, 256, 512, 1024)
    rerank_nums: tuple[int, ...] = (5, 10, 20, 50, 100, 200)
    timed_database: int = 100_000
    rounds: int = 5


QUICK = Settings(  # shows that everything runs, not what it results in
    places=12,
    photos_per_place=2,
    val_places=2,
    test_places=4,
    foundation_places=8,
    foundation_epochs=1,
    photo_size=(48, 36),
    image_size=(28, 42),
    batch_size=4,
    epochs=1,
    learning_rates=(2e-3,),
    seeds=(0,),
    bits=(16, 512),
    rerank_nums=(5, 200),
    timed_database=50,
    rounds=1,
)
