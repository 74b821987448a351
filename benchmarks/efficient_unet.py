"""The Efficient U-Net against the plain U-Net with as many parameters, both at 256 pixels.

    python -m benchmarks.efficient_unet                  # takes some minutes: compiles both

The networks are compiled as train steps for one host of TPU v4 (v4:2x2x1), 4 images for each
chip, without one, and never run there: figures are those of `imagen plan`. The plain U-Net has the
same channels at the same resolutions, attends where the other does, and has its blocks spread more
evenly; the paper says that the Efficient U-Net is 2 to 3 times faster (Saharia et al. 2022, section
2.3.1 and appendix B.1).
"""

from __future__ import annotations

import argparse
import dataclasses
import os

from imagen_jax.config import load_config
from imagen_jax.models.unet import UNet
from imagen_jax.stage import make_stage

LEVELS = 5
"""Resolutions of both: 256, 128, 64, 32 and 16 pixels."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v4:2x2x1", help="(default: %(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from imagen_jax import sharding
    from imagen_jax.plan.jobs import where_to
    from imagen_jax.plan.programs import train_program
    from imagen_jax.plan.report import make_plan

    target = where_to(args.topology)
    efficient = make_stage(load_config("sr256"), None)
    efficient = dataclasses.replace(
        efficient,
        train=dataclasses.replace(efficient.train, batch_size=4 * len(target.devices)),
    )
    plain = efficient.with_network(
        UNet(
            channels=128,
            multipliers=(1, 1, 2, 4, 8),
            blocks=(2, 3, 3, 4, 6),
            attention=(False, False, False, False, True),
            head_channels=128,
            text_channels=1024,
            text_layers=0,
            dropout=0.0,
            dtype="bfloat16",
            remat=efficient.network.remat,
        )
    )
    mesh = sharding.make_mesh({"fsdp": -1}, target.devices)
    plans = {
        name: make_plan(train_program(stage, mesh, target.name, "quick"), target.chip)
        for name, stage in (("plain U-Net", plain), ("Efficient U-Net", efficient))
    }
    print(f"{'network':<18}{'M params':>9}{'TFLOP':>8}{'GB moved':>10}{'GiB temp':>10}{'ms':>8}")
    for name, plan in plans.items():
        assert plan.seconds is not None
        print(
            f"{name:<18}{plan.parameters / 1e6:9.0f}{plan.model_flops / 1e12:8.2f}"
            f"{plan.hbm_bytes / 1e9:10.1f}{plan.memory['temp'] / 2**30:10.2f}"
            f"{plan.seconds * 1e3:8.0f}"
        )


if __name__ == "__main__":
    main()
