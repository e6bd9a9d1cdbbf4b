"""Serve an index: a page to which an image is dropped, and the same for programs, as JSON."""

from utils.cli.serve import ServeArguments
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(ServeArguments, __doc__)  # before the imports that take seconds

import logging
import sys
from functools import partial

from model import InputError, PlaceRecognizer
from utils.retrieval.config import EngineAddress
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable
from utils.service.config import is_local
from utils.service.engine_library import EngineLibrary
from utils.service.library import FolderLibrary, Library


def main(args: ServeArguments) -> None:
    try:
        from utils.service.app import create_app
        from utils.service.endpoints import Service
        from utils.service.server import listen, run
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is missing: pip install -r requirements-serve.txt.") from error

    access = args.access
    if not is_local(access.host) and not access.token:
        logging.warning("--host %s is open to the network, and nobody is asked for a token: see --token.", access.host)
    listening = listen(access)
    with listening:
        library = open_library(args)
        service = Service(library, args.service)
        scheme, host = "https" if access.tls_cert else "http", f"[{access.name}]" if ":" in access.name else access.name
        address = f"{scheme}://{host}:{listening.getsockname()[1]}/"
        print(printable(f"{args.index} holds {len(library)} images. Open {address} (Ctrl-C stops)"))
        if access.token:
            print("A browser asks for a name, which may be anything, and for a password: the token.")
        sys.stdout.flush()
        run(create_app(service, access), listening, args.service, access)


def open_library(args: ServeArguments) -> Library:
    """The index, and its model."""
    if isinstance(args.index, EngineAddress):
        return EngineLibrary(args.index, args.model, args.accept, device=args.device, rerank_num=args.rerank_num)
    recognizer = PlaceRecognizer.open(
        args.index,
        args.model,
        device=args.device,
        rerank_num=args.rerank_num,
        verify=not args.trust_index,
        image_root=args.image_root,
    )
    return FolderLibrary(recognizer, args.index, args.accept)


if __name__ == "__main__":
    cli_main(partial(main, args))
