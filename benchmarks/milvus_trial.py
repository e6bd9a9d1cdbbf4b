"""Starts a Milvus server for a trial, which this machine alone reaches, and runs it until Ctrl-C.

    python -m benchmarks.milvus_trial FOLDER [--port N]

It needs the packages `pymilvus` and `milvus` (Linux x86-64). The data stay in the folder.
"""

import contextlib
import signal
from pathlib import Path

from benchmarks.milvus_server import PORT, MilvusProcess, missing
from model.errors import InputError
from utils.runtime.flags import ArgumentParser, positive_int
from utils.runtime.script import cli_main


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the server's data")
    parser.add_argument("--port", type=positive_int, default=PORT, help="port on 127.0.0.1")
    args = parser.parse_args()
    if reason := missing():
        raise InputError(f"No Milvus server can be started here: {reason}.")
    args.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(MilvusProcess(args.folder.absolute(), port=args.port)) as server:
        print(f"The server runs at milvus://{server.address}/NAME. Ctrl-C stops it.", flush=True)
        signal.pause()


if __name__ == "__main__":
    cli_main(main)
