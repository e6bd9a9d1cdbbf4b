"""The flags of serve.py."""

from dataclasses import dataclass
from pathlib import Path

from model import InputError
from utils.cli.evaluation import require_file
from utils.cli.model import model_name_flag
from utils.retrieval.config import AcceptConfig, EngineAddress, check_folder_flag, index_location
from utils.runtime.devices import device_flag
from utils.runtime.flags import flag, part, positive_int, switch
from utils.service.config import AccessConfig, ServiceConfig


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """The command line of serve.py. model: None for the one that the index names. Raises InputError for flags that do
    not go together.
    """

    index: Path | EngineAddress = flag(
        "the index to serve, built by build_index.py; or milvus://HOST:PORT/NAME",
        group="index",
        type=index_location,
        metavar="INDEX",
    )
    image_root: Path | None = flag(
        "the folder of the index's images, if they are no longer where the index says", group="index", default=None
    )
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one", group="index")
    model: str | None = model_name_flag(
        "the index's model, if its file is no longer at the path that the index stores", group="index"
    )
    rerank_num: int = flag(
        "re-rank the first N results of models with both branches", group="search", type=positive_int, default=100
    )
    accept: AcceptConfig = part("search", default=AcceptConfig())
    device: str = device_flag()
    access: AccessConfig = part("access", default=AccessConfig())
    service: ServiceConfig = part("service", default=ServiceConfig())

    def __post_init__(self) -> None:
        require_file("accept", self.accept.file)
        for name, value in (
            ("image_root", self.image_root),
            ("trust_index", self.trust_index),
            ("writable", self.service.writable),
        ):
            check_folder_flag(name, value, self.index)
        if self.image_root and not self.image_root.is_dir():
            raise InputError(f"--image_root: no folder {self.image_root}.")
