"""The flags of serve.py."""

from dataclasses import dataclass
from pathlib import Path

from model import InputError
from utils.cli.evaluation import require_file
from utils.cli.model import model_name_flag
from utils.retrieval.config import AcceptConfig, index_folder
from utils.runtime.devices import device_flag
from utils.runtime.flags import flag, non_negative_int, part, positive_int, switch
from utils.service.config import ServiceConfig

MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """The command line of serve.py. model: None for the one that the index names. Raises InputError for a port that
    there is not.
    """

    index: Path = flag("the index to serve, built by build_index.py", group="index", type=index_folder, metavar="INDEX")
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one", group="index")
    model: str | None = model_name_flag(
        "the index's model, if its file is no longer at the path that the index stores", group="index"
    )
    rerank_num: int = flag(
        "re-rank the first N results of models with both branches", group="search", type=positive_int, default=100
    )
    accept: AcceptConfig = part("search", default=AcceptConfig())
    device: str = device_flag()
    host: str = flag(
        "address to listen on; by default only this machine reaches it", group="service", default="127.0.0.1"
    )
    port: int = flag("port to listen on; 0 for any that is free", group="service", type=non_negative_int, default=8000)
    service: ServiceConfig = part("service", default=ServiceConfig())

    def __post_init__(self) -> None:
        require_file("accept", self.accept.file)
        if self.port > MAX_PORT:
            raise InputError(f"--port is {self.port}. Choose one up to {MAX_PORT}.")
