"""Copy an index into a search engine, for databases that outgrow one machine. The folder stays the original."""

from utils.cli import parse_export_index
from utils.retrieval.engines import engine_of
from utils.retrieval.index import Index
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main() -> None:
    args = parse_export_index(__doc__)
    index = Index(args.index)
    print(printable(f"The index {args.index} holds {len(index)} images."))
    copied = engine_of(args.to).export_index(index, args.to, append=args.append, shards=args.shards)
    if copied:
        print(f"Exported to {args.to}: {copied} images, {len(index) - copied} were there already. Verified.")
    else:
        print(f"{args.to} holds this index already. Nothing was changed.")


if __name__ == "__main__":
    cli_main(main)
