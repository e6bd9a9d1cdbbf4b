"""Export a SelaVPR++ model to a safetensors file, with the model's configuration in its metadata."""

from model.checkpoint_files import safetensors_bytes
from model.weights import load_model
from utils.cli import parse_export_safetensors
from utils.runtime.atomic_files import atomic_write
from utils.runtime.script import cli_main


def main() -> None:
    args = parse_export_safetensors(__doc__)
    model = load_model(args.model, args.resume)
    content = safetensors_bytes(model.state_dict(), model.config)
    with atomic_write(args.output, "wb") as file:
        file.write(content)
    print(f"Saved {args.output} ({len(content) / 1e6:.1f} MB): {model.config.flags}")


if __name__ == "__main__":
    cli_main(main)
