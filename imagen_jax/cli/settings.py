"""Sampling settings on the command line: one value, one for each stage, or several to compare."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from imagen_jax.cli.command import number, positive, seed, whole

if TYPE_CHECKING:
    from imagen_jax.cascade import Settings

THRESHOLDS = ("dynamic", "static", "none")


def threshold(text: str) -> str:
    """Type of an argument that must be one of THRESHOLDS."""
    if text not in THRESHOLDS:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r}; choose {', '.join(THRESHOLDS)}"
        )
    return text


SETTINGS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "guidance": (
        number, "SCALE", "classifier-free guidance scale; 1 is off, more follows the text closer",
    ),
    "guidance_min_logsnr": (
        number, "LOGSNR", "guide no noisier levels than this; logsnr is -20 (noise) to 20 (clean)",
    ),
    "guidance_max_logsnr": (number, "LOGSNR", "guide no cleaner levels than this"),
    "threshold": (
        threshold, "KIND",
        f"{', '.join(THRESHOLDS)}: how each step's estimate is kept in the range of an image",
    ),
    "percentile": (number, "P", "percentile of dynamic thresholding, 0 to 100"),
    "threshold_cap": (number, "MAX", "most that dynamic thresholding divides by, at least 1"),
    "sampler": (
        str, "NAME",
        "ddpm, ddim, dpmpp_2m or heun (it calls the network twice a step); with options as in "
        "'ddim(eta=0.5)', 'ddpm(variance=large)', 'dpmpp_2m(sde=true)', 'heun(churn=10)'",
    ),
    "steps": (positive, "N", "steps of the sampler; time grows with them"),
    "time_grid": (
        str, "NAME",
        "uniform_t, uniform_logsnr, karras, trailing or leading: where the steps lie, or a "
        "respacing by DeepFloyd IF's name for it, such as smart50; heun needs "
        "karras",
    ),
    "end_logsnr": (
        number, "LOGSNR",
        "noise level of the last step; a network that has not learned the cleanest levels leaves "
        "grain there",
    ),
    "aug_level": (
        number, "LEVEL",
        "noise put on the low-resolution image before it is enlarged, 0 (none) to 1 (only noise); "
        "more invents more detail",
    ),
    "pad": (
        whole, "PIXELS",
        "continue the edges of the low-resolution image by so many of its pixels while it is "
        "enlarged, and cut them off: mends borders, takes longer",
    ),
}  # fmt: skip
"""Field of stage_config.SampleConfig -> type of its value, how help calls it, what it is."""

SWEPT: dict[str, Callable[[str], Any]] = {
    **{name: kind for name, (kind, _, _) in SETTINGS.items()},
    "strength": number,
    "seed": seed,
}
"""Setting that can be swept -> type of its value."""


def split(text: str) -> list[str]:
    """Return the parts of a text between commas that are in no parentheses."""
    return re.split(r",(?![^(]*\))", text)


def per_stage(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Type of an argument with one value for all stages, or STAGE=VALUE,STAGE=VALUE."""

    def parse(text: str) -> Any:
        if "=" not in text.partition("(")[0]:
            return kind(text)
        pairs = [part.partition("=") for part in split(text)]
        if not all(name and equals and value for name, equals, value in pairs):
            raise argparse.ArgumentTypeError(
                f"must be one value, or STAGE=VALUE,STAGE=VALUE; got {text!r}"
            )
        return {name: kind(value) for name, _, value in pairs}

    return parse


def add_settings(parser: argparse.ArgumentParser, guidance: str = "that of the config") -> None:
    """Add the sampling settings, which are the config's where they are not given.

    Args:
      guidance: the guidance scale's default in the help text.
    """
    group = parser.add_argument_group(
        "settings of the stages",
        "each one value for all stages, or STAGE=VALUE,STAGE=VALUE as in --steps\n"
        "base=32,sr=8; those of the config where not given",
    )
    for name, (kind, metavar, said) in SETTINGS.items():
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=per_stage(kind),
            metavar=metavar,
            help=f"{said} (default: {guidance})" if name == "guidance" else said,
        )


def settings(args: argparse.Namespace) -> Settings:
    """Return the sampling settings that were given."""
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    return cast("Settings", given)


def add_sweep(parser: argparse.ArgumentParser, said: str, required: bool = False) -> None:
    """Add --sweep, once for each setting that is varied; axes makes cascade.Axis of them.

    Args:
      said: help text.
      required: True if at least one must be given.
    """
    parser.add_argument(
        "--sweep",
        type=axis,
        action="append",
        required=required,
        metavar="[STAGE.]NAME=V,V,...",
        help=f"{said}; NAME is one of {', '.join(SWEPT)}",
    )


def axis(text: str) -> tuple[str | None, str, list[Any]]:
    """Type of --sweep: (stage or None, name, values)."""
    where, _, values = text.partition("=")
    stage, _, name = where.rpartition(".")
    if name not in SWEPT or not values:
        raise argparse.ArgumentTypeError(
            f"must be [STAGE.]NAME=VALUE,VALUE with NAME one of {', '.join(SWEPT)}; got {text!r}"
        )
    try:
        return stage or None, name, [SWEPT[name](value) for value in split(values)]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def axes(args: argparse.Namespace) -> list[Any]:
    """Return the cascade.Axis of every --sweep."""
    from imagen_jax.cascade import Axis

    return [Axis(name, values, stage) for stage, name, values in args.sweep]
