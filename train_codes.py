"""Train binary codes of a float model's descriptors: a linear layer, on an index of places, in minutes on a CPU.

Example: `build_index.py gsv_cities/Images --index places --model MODEL`, then
`train_codes.py --index places --output codes.bin`, then `eval.py --codes codes.bin ...`.
"""

from utils.cli.codes import TrainCodesArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(TrainCodesArguments, __doc__)  # before the imports that take seconds

import time
from functools import partial

from model import InputError
from utils.retrieval.code_file import write_code_file
from utils.retrieval.index import Index
from utils.runtime.atomic_files import check_output
from utils.runtime.script import cli_main
from utils.training.codes import place_labels, train_coding


def main(args: TrainCodesArguments) -> None:
    started = time.perf_counter()
    check_output(args.output, overwrite=True)  # before minutes of training

    # ---- Descriptors of places, which a float model gave
    index = Index(args.index, verify=not args.trust_index)
    descriptors = index.features().descriptors
    if descriptors is None or index.metadata.model.code_bits:
        raise InputError(
            f"The index {index} is one of a model with codes of its own. Build one of a float model, whose descriptors "
            "get codes."
        )

    # ---- A linear layer, with the losses of the binary branch
    coding = train_coding(descriptors, place_labels(list(index.images.paths)), args.training)
    write_code_file(args.output, coding, index.metadata)
    print(f"{args.output}: {coding.bits} bits, {time.perf_counter() - started:.0f} s. Use it with --codes.")


if __name__ == "__main__":
    cli_main(partial(main, args))
