"""Serve an index: a page to which an image is dropped, and the same for programs, as JSON."""

from utils.cli.serve import ServeArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(ServeArguments, __doc__)  # before the imports that take seconds

import logging
from functools import partial

from model import InputError, PlaceRecognizer
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main(args: ServeArguments) -> None:
    try:
        from utils.service.app import Service, create_app
        from utils.service.guard import is_local
        from utils.service.library import Library
        from utils.service.server import listen, run
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is missing: pip install -r requirements-serve.txt.") from error

    local = is_local(args.host)
    if not local:
        logging.warning("--host %s is open to the network, and nobody is asked for a password.", args.host)
    listening = listen(args.host, args.port)
    with listening:
        recognizer = PlaceRecognizer.open(
            args.index, args.model, device=args.device, rerank_num=args.rerank_num, verify=not args.trust_index
        )
        service = Service(Library(recognizer, args.index, args.accept), args.service)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(
            printable(
                f"{args.index} holds {len(recognizer)} images. Open http://{host}:{listening.getsockname()[1]}/ "
                "(Ctrl-C stops)"
            ),
            flush=True,
        )
        run(create_app(service, local=local), listening, max_bytes=args.service.max_bytes)


if __name__ == "__main__":
    cli_main(partial(main, args))
