"""The domains, and the cities that the experiments draw of each."""

from pathlib import Path

from benchmarks.claims.settings import Settings
from datasets.benchmark import Benchmark
from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities
from datasets.layouts import BenchmarkConfig
from datasets.synthetic import CityConfig, Domain, make_city
from utils.runtime.atomic_files import atomic_folder

DOMAINS = {
    "summer": Domain(
        windows=("sash", "arched", "shutters"),
        roofs=("gable", "stepped", "hip"),
        lights=("noon", "evening", "overcast"),
        months=(4, 5, 6, 7, 8, 9),
    ),
    "winter": Domain(
        windows=("ribbon", "balcony", "casement"),
        roofs=("parapet", "mansard"),
        lights=("overcast", "dusk", "night", "snow"),
        months=(12, 1, 2),
    ),
    "autumn": Domain(
        windows=("arched", "ribbon", "shutters"),
        roofs=("hip", "parapet"),
        views=("along",),
        lights=("evening", "rain", "fog"),
        months=(9, 10, 11),
    ),
}
HOME, TARGET = "summer", "winter"  # the domain of the foundation, and the one it is adapted to
FOUNDATION = "foundation"  # the city that the backbone is trained on
PARTS = 3  # cities of each domain: training on all domains takes one of each


def draw_cities(folder: Path, settings: Settings) -> None:
    """Draws a training set and a benchmark of each domain, and the foundation's training set, unless they exist."""
    for seed, (name, domain) in enumerate(DOMAINS.items()):
        if not (folder / name).exists():
            config = CityConfig(
                cities=city_names(name),
                places=settings.places,
                val_places=settings.val_places,
                test_places=settings.test_places,
                photos_per_place=settings.photos_per_place,
                database_photos=settings.database_photos,
                queries=settings.queries,
                size=settings.photo_size,
                seed=seed,
                domain=domain,
            )
            make_city(folder / name, config)
    if not (folder / FOUNDATION).exists():
        config = CityConfig(
            cities=(FOUNDATION,),
            places=settings.foundation_places,
            val_places=1,
            test_places=1,
            photos_per_place=settings.photos_per_place,
            size=settings.photo_size,
            seed=len(DOMAINS),
            domain=DOMAINS[HOME],
        )
        make_city(folder / FOUNDATION, config)
    if not (folder / "all").exists():
        _link_training_sets(folder)


def city_names(domain: str) -> tuple[str, ...]:
    """The names of a domain's training cities."""
    return tuple(f"{domain}{part}" for part in range(PARTS))


def training_places(folder: Path, domains: tuple[str, ...], settings: Settings, seed: int) -> GSVCities:
    """The training places of one domain, or as many of all: a third of each. (FOUNDATION,): those of the backbone."""
    parts = PARTS // len(domains)
    cities = tuple(city for domain in domains for city in city_names(domain)[:parts])
    if domains == (FOUNDATION,):
        folder, cities = folder / FOUNDATION, (FOUNDATION,)
    else:
        folder = folder / "all"
    config = PlacesConfig(
        cities=cities,
        image_size=settings.image_size,
        images_per_place=settings.photos_per_place,
        randaugment_ops=0,
        seed=seed,
    )
    return GSVCities(folder / "gsv_cities", config)


def benchmark(folder: Path, domain: str, split: str) -> Benchmark:
    """The split "val" or "test" of a domain."""
    return Benchmark(BenchmarkConfig(name="synthetic", datasets_folder=folder / domain, split=split))


def _link_training_sets(folder: Path) -> None:
    """One folder with links to the training cities of all domains."""
    with atomic_folder(folder / "all") as together:
        for kind in ("Dataframes", "Images"):
            target = together / "gsv_cities" / kind
            target.mkdir(parents=True)
            for name in DOMAINS:
                for source in sorted((folder / name / "gsv_cities" / kind).iterdir()):
                    (target / source.name).symlink_to(source.resolve(), target_is_directory=source.is_dir())
