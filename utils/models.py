"""Models that the main rank builds or loads, on every rank: the others need not see its files."""

from collections.abc import Callable
from typing import Any

from model import GeoLocalizationNet
from utils.runtime.distributed import broadcast_object, broadcast_tensors, is_main, run_on_main


def model_on_all_ranks(build: Callable[[], GeoLocalizationNet]) -> GeoLocalizationNet:
    """The model that `build` returns on the main rank: on every rank, on the CPU. Raises what run_on_main raises."""
    built: Any = run_on_main(build, share=False)
    config, images = broadcast_object((built.config, built.image_config) if is_main() else built)
    model = built if is_main() else GeoLocalizationNet(config)
    model.image_config = images
    broadcast_tensors(model.state_dict().values())
    return model


def weights_on_all_ranks(model: GeoLocalizationNet, load: Callable[[], None]) -> None:
    """Calls `load`, which fills the model, on the main rank, and copies the weights to the others.

    Raises what run_on_main raises.
    """
    run_on_main(load)
    broadcast_tensors(model.state_dict().values())
