"""`imagen evaluate features`, `compare`, `vote`, `votes`: images from anywhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from imagen_jax.cli.command import Commands, command, positive, seed
from imagen_jax.cli.status import show
from imagen_jax.files import new_file

if TYPE_CHECKING:
    from imagen_jax.eval.feature_sets import FeatureSet
    from imagen_jax.eval.features.network import FeatureNetwork

NETWORKS = ("mobilenet-v2", "inception-v3", "clip")
PROTOCOLS = ("clean", "tf1", "half-pixel")
FITS = ("exact", "crop")


def add_actions(actions: Commands) -> None:
    """Adds the actions to the parser of `imagen evaluate`."""
    _add_features(actions)
    _add_compare(actions)
    _add_vote(actions)
    _add_votes(actions)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds --network, --weights and --protocol."""
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="mobilenet-v2",
        help="whose features distances are computed on; an FID is that of inception-v3 only "
        "(default: %(default)s, from an installed package)",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="of the network: a .pth or .safetensors file, of clip the directory",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="clean",
        help="how inception-v3 gets its images: as clean-fid, as TensorFlow 1 and "
        "torch-fidelity, or as pytorch-fid resizes them (default: %(default)s)",
    )


def load_network(args: argparse.Namespace) -> FeatureNetwork:
    """The network that the arguments name."""
    from imagen_jax.eval.features import network

    return network.load_network(args.network, args.weights, args.protocol)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="side that images are brought to before the network sees them (default: that of the "
        "first image)",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="exact",
        help="images of another size: refuse them, or take the middle square and resize it "
        "(default: %(default)s)",
    )


def _add_features(actions: Commands) -> None:
    parser = command(
        actions,
        "features",
        "features of a folder of images, kept for comparisons",
        """
        Computes the features of all images in a folder and writes them, with their moments and
        with hashes of weights, preprocessing and images: reference statistics that need not be
        computed again, and that nothing else can be mistaken for.""",
        """
        imagen evaluate features val2014 --size 256 --fit crop --network inception-v3 \\
            --weights pt_inception-2015-12-05-6726825d.pth --output coco256.npz
        imagen evaluate features runs/tpu/coco/images --output sampled.npz
        imagen evaluate features photographs --network clip --weights clip-vit-large --size 224 \\
            --fit crop --output clip.npz""",
    )
    parser.add_argument("images", metavar="DIR", help="folder of images, with those below it")
    _add_reading(parser)
    add_network(parser)
    parser.add_argument("--output", metavar="NPZ", required=True, help="the file to write")
    parser.set_defaults(run=_features)


def _add_compare(actions: Commands) -> None:
    parser = command(
        actions,
        "compare",
        "distances of images from real ones",
        """
        Prints the Frechet and the kernel distance, precision, recall, density and coverage of one
        set of images against another, beside those of other real images; on Inception, the
        Inception score of both sets, too. Sets of different numbers, networks or preprocessing are
        refused.""",
        """
        imagen evaluate compare samples real_images --floor more_real_images
        imagen evaluate compare sampled.npz coco256.npz
        imagen evaluate compare samples real_images --size 256 --fit crop --count 5000""",
    )
    parser.add_argument("sampled", metavar="SAMPLED", help="folder, or file of `features`")
    parser.add_argument("real", metavar="REAL", help="folder, or file of `features`")
    parser.add_argument(
        "--floor", metavar="REAL", help="other real images: what they get is the least to expect"
    )
    parser.add_argument(
        "--count", type=positive, metavar="N", help="take the first N of each set (default: all)"
    )
    _add_reading(parser)
    add_network(parser)
    parser.set_defaults(run=_compare)


def _add_vote(actions: Commands) -> None:
    parser = command(
        actions,
        "vote",
        "a page on which people vote between two cascades without knowing which is which",
        """
        Puts the images of two cascades for the same prompts side by side, in random order and on
        random sides. Give for-voters/vote.html to people, keep key.json from them; what they
        download goes to `imagen evaluate votes`.""",
        """
        imagen evaluate vote runs/a/prompts runs/b/prompts --output runs/a-or-b
        imagen evaluate vote runs/a/prompts runs/b/prompts --output runs/another-order
        imagen evaluate vote runs/sweep/guidance=1 runs/sweep/guidance=4 --output runs/guidance""",
    )
    parser.add_argument("a", metavar="A", help="what `imagen evaluate prompts` wrote of one")
    parser.add_argument("b", metavar="B", help="and of the other")
    parser.add_argument(
        "--seed",
        type=seed,
        help="of sides and order: whoever knows it knows which is which (default: a random one, "
        "kept in the key)",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="where page and key go")
    parser.set_defaults(run=_vote)


def _add_votes(actions: Commands) -> None:
    parser = command(
        actions,
        "votes",
        "how often people preferred either cascade, with intervals",
        """
        Counts votes of a page of `imagen evaluate vote`: of everything and of every category, the
        share of one cascade among preferences (Wilson's interval), and among pairs by majority
        (Clopper and Pearson's).""",
        """
        imagen evaluate votes runs/a-or-b/key.json votes-ann.json
        imagen evaluate votes runs/a-or-b/key.json votes-ann.json votes-bob.json
        imagen evaluate votes runs/a-or-b/key.json votes-*.json""",
    )
    parser.add_argument("key", metavar="KEY", help="key.json beside the page")
    parser.add_argument("votes", metavar="VOTES", nargs="+", help="what people downloaded")
    parser.set_defaults(run=_votes)


def _read_set(path: str, args: argparse.Namespace, network: FeatureNetwork | None) -> FeatureSet:
    from imagen_jax.eval.feature_sets import FeatureSet, compute_features
    from imagen_jax.eval.images import Files, list_images, side_of

    if path.endswith(".npz"):
        return FeatureSet.load(path)
    files = list_images(path)
    side = args.size or side_of(files[0])
    images = Files(path, files, side, args.fit)
    return compute_features(network or load_network(args), images)


def _features(args: argparse.Namespace) -> None:
    output = new_file(args.output, ".npz")
    found = _read_set(args.images, args, load_network(args))
    found.save(output)
    print(f"features of {len(found)} images in {args.output}")


def _compare(args: argparse.Namespace) -> None:
    from imagen_jax.eval.feature_sets import compare
    from imagen_jax.eval.summary import summary

    paths = [path for path in (args.sampled, args.real, args.floor) if path is not None]
    network = None if all(path.endswith(".npz") for path in paths) else load_network(args)
    sets = [_read_set(path, args, network) for path in paths]
    if args.count is not None:
        sets = [of.first(args.count) for of in sets]
    sampled, real, *floor = sets
    show(summary({"distance": compare(sampled, real, floor[0] if floor else None)}))


def _vote(args: argparse.Namespace) -> None:
    from imagen_jax.eval.vote_page import KEY, PAGE, write_vote

    pairs = write_vote(args.a, args.b, args.output, args.seed)
    print(f"{pairs} pairs in {args.output}/{PAGE}; which is which is in {args.output}/{KEY}")


def _votes(args: argparse.Namespace) -> None:
    from imagen_jax.eval.votes import table, tally

    show(table(tally(args.key, args.votes)))
