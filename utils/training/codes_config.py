"""Settings of the training of codes."""

from dataclasses import dataclass

from model.config import CODE_BITS, check_code_bits
from utils.runtime.flags import flag, positive_float, positive_int, seed_flag


@dataclass(frozen=True, kw_only=True)
class CodeTrainingConfig:
    """How codes are trained. Raises InputError for a code length that codes cannot have."""

    bits: int = flag("bits of the codes, a multiple of 8", name="code_bits", type=positive_int, default=CODE_BITS)
    epochs_num: int = flag("epochs", type=positive_int, default=20)
    batch_size: int = flag("places per batch", name="train_batch_size", type=positive_int, default=120)
    images_per_place: int = flag("images of each place in a batch", type=positive_int, default=4)
    lr: float = flag("learning rate of Adam at the start; it falls to 0 as a cosine", type=positive_float, default=1e-3)
    seed: int = seed_flag()

    def __post_init__(self) -> None:
        check_code_bits(self.bits)
