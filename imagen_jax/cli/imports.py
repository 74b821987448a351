"""`imagen import`: weights that others trained -> an exported cascade."""

from __future__ import annotations

import argparse

from imagen_jax.cli.command import Commands, command
from imagen_jax.cli.export import with_size
from imagen_jax.errors import UserError


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "import",
        "weights that others trained -> a cascade that all other commands take",
        """
        Reads the files of DeepFloyd IF that you downloaded, as the hub has them for diffusers:
        stage I, stage II, or both, each a directory with unet/. T5's encoder, text_encoder/ and
        tokenizer/ in one of them, is used once and stays where it is. The safety checker and the
        watermark, safety_checker/ and watermarker/ in one of them, become a part of the cascade and
        are applied to all its images; the command says which of them it found. Writes a cascade
        like one of imagen export, with the notice of the licence. Weights are read piece by piece;
        memory has to hold T5's encoder (9.5 GB in float16), not the networks. Files that are
        pickled or quantised are refused.""",
        """
        imagen import deepfloyd IF-I-XL-v1.0 IF-II-L-v1.0 --variant fp16 --output if
        imagen sample --workdir if --encoder-weights IF-I-XL-v1.0 --low-memory \\
            --dtype bfloat16 "a photo of a red fox in the snow"
        imagen import deepfloyd IF-II-L-v1.0 --text-encoder IF-I-XL-v1.0 --output enlarge
            stage II alone, which enlarges images of your own
        imagen import deepfloyd --from-hub DeepFloyd/IF-I-XL-v1.0 DeepFloyd/IF-II-L-v1.0 \\
            --variant fp16 --output if
            downloads them first, with huggingface_hub installed and logged in""",
    )
    parser.add_argument("kind", choices=("deepfloyd",), help="whose weights they are")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="directory of a pipeline")
    parser.add_argument(
        "--from-hub",
        nargs="+",
        metavar="OWNER/NAME",
        help="in place of PATH: repositories on the Hugging Face hub, downloaded into its cache on "
        "this machine; the first gives T5's encoder, the safety checker and the watermark, too. "
        "Interrupted, the same command resumes",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where the cascade goes")
    parser.add_argument(
        "--text-encoder",
        metavar="DIR",
        help="directory with text_encoder/ and tokenizer/ (default: the first PATH that has them)",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="of the networks' weights, such as fp16 (default: the plain one, or the only one)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    if bool(args.paths) == bool(args.from_hub):
        raise UserError("give the folders of the files, or --from-hub, and not both")
    from imagen_jax.checkpoints.deepfloyd import import_deepfloyd
    from imagen_jax.checkpoints.exported import EXPORTED, new_files

    paths = args.paths
    if args.from_hub:
        from imagen_jax.checkpoints.hub import download_pipeline

        with new_files(args.output, [EXPORTED]):
            pass  # told before gigabytes are downloaded
        paths = [
            download_pipeline(
                name, args.variant, text=not number and args.text_encoder is None, safety=not number
            )
            for number, name in enumerate(args.from_hub)
        ]
        print(f"downloaded: {', '.join(map(str, paths))}")
    written = import_deepfloyd(
        paths, args.output, text_encoder=args.text_encoder, variant=args.variant
    )
    for path in written:
        print(with_size(path))
