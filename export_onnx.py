"""Export a SelaVPR++ model to an ONNX file for images of one size, checked with onnxruntime against PyTorch."""

from datasets.transforms import normalize
from model.weights import load_model
from utils.cli import parse_export_onnx
from utils.onnx_export import check_packages, checked_images, compare, export, reference_outputs
from utils.runtime.atomic_files import atomic_write
from utils.runtime.script import cli_main


def main() -> None:
    args = parse_export_onnx(__doc__)
    check_packages()

    # ---- The model, and its outputs in PyTorch
    model = load_model(args.model, args.resume)
    flags, settings = model.config.flags, args.settings
    images = checked_images(settings.resize)
    expected = reference_outputs(model, images)

    # ---- The ONNX file. If it does not give the same outputs, or the disk is full, none is left
    print(f"Exporting {flags}; this takes about a minute.", flush=True)
    proto = export(model, settings, normalize=args.normalize)
    with atomic_write(args.output, "wb", interruptible=True) as file:
        file.write(proto.SerializeToString())
        file.flush()
        inputs = images if args.normalize else normalize(images)
        errors = compare(file.name, inputs, expected, precision=settings.precision)

    # ---- Report
    for name, error in errors.items():
        count = f"{error:.0f} of {512 * len(images)} bits differ" if name == "code" else f"relative error {error:.1e}"
        print(f"{name}: {count}")
    print(f"Saved {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    cli_main(main)
