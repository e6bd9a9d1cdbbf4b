"""The flags of train_codes.py."""

from dataclasses import dataclass
from pathlib import Path

from utils.retrieval.config import index_folder
from utils.runtime.flags import flag, part, switch
from utils.training.codes_config import CodeTrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainCodesArguments:
    """The command line of train_codes.py."""

    index: Path = flag(
        "an index of the images of places, named as in GSV-Cities, by a float model", group="data", type=index_folder
    )
    output: Path = flag("the file to write, for --codes of eval.py and build_index.py", group="data")
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one", group="data")
    training: CodeTrainingConfig = part("training")
