"""Our U-Nets beside imagen-pytorch's and diffusers' on the CPU: train step and guided step.

    python -m benchmarks.unet_speed                     # installs the peers into runs/peers first
    python -m benchmarks.unet_speed --rounds 5
    python -m benchmarks.unet_speed --network deepfloyd # the same network in both
    python -m benchmarks.unet_speed --beside 52c7ff2    # our own of that commit is the peer

Each base network is of about 60M parameters: 64 x 64 pixels, 96 channels times (1, 2, 3, 4), 2
residual blocks for each resolution, attention at 32, 16 and 8, 64 text tokens of 512 channels. All
run in float32 and take turns of two steps, of which the second is timed, so that what else the
machine does falls on all of them alike; what counts are the ratios of medians. A train step is
loss, gradients and an Adam update; a guided step is one call with [conditional; unconditional]
batch. Networks differ in their FLOPs, so that the table also has GFLOP/s (ours counted from the
jaxpr of the mathematics, however it is computed, the peers' by torch's FlopCounterMode). DeepFloyd
IF's first stage has 128 channels times (1, 2, 3, 4) and 3 blocks in both; every step computes what
it needs of the text, which our sampling does once. docs/paper-scale.md and docs/deepfloyd.md have
what it printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from imagen_jax.diffusion.guidance import guided_denoiser
from imagen_jax.flops import flops_of
from imagen_jax.models.base import BaseNetwork
from imagen_jax.models.deepfloyd_unet import DeepFloydUNet
from imagen_jax.models.unet import UNet
from imagen_jax.typing import Conditioning, TextEmbedding

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "runs" / "peers"
NETWORKS = ("imagen-pytorch==2.1.0", "diffusers==0.42.1")
NEEDED = (  # by the networks alone; all that imagen-pytorch asks for is gigabytes
    "beartype", "einops", "filelock", "fsspec", "httpx", "huggingface-hub", "importlib-metadata",
    "numpy", "packaging", "pillow", "pydantic", "regex", "requests", "safetensors", "tqdm",
)  # fmt: skip
SIZE, TOKENS, WIDTH = 64, 64, 512
TRAIN_BATCH, SAMPLE_BATCH = 8, 4
OURS: dict[str, BaseNetwork] = {
    "base": UNet(
        channels=96,
        multipliers=(1, 2, 3, 4),
        blocks=(2, 2, 2, 2),
        attention=(False, True, True, True),
        head_channels=32,
        text_channels=WIDTH,
        text_layers=0,
        dropout=0.0,
        dtype="float32",
        conditioning_multiplier=2,
    ),
    "deepfloyd": DeepFloydUNet(
        channels=(128, 256, 384, 512),
        blocks=(3, 3, 3, 3),
        attention=(False, True, True, True),
        features=512,
        text_channels=512,
        text_length=TOKENS,
    ),
}
PEERS_OF = {"base": ("imagen-pytorch", "diffusers"), "deepfloyd": ("diffusers-deepfloyd",)}


class Ours:
    """A U-Net of this package."""

    def __init__(self, network: str = "base") -> None:
        self.network = OURS[network]
        x, logsnr, conditioning = self.inputs(TRAIN_BATCH)
        self.params = nn.unbox(
            jax.jit(self.network.init)(jax.random.key(0), x, logsnr, conditioning)["params"]
        )
        adam = optax.adam(1e-4)
        self.state = (self.params, adam.init(self.params))

        def loss(params: Any, x: Any, logsnr: Any, conditioning: Any) -> Any:
            y = self.network.apply({"params": params}, x, logsnr, conditioning, True)
            return jnp.mean((y[..., :3] - x) ** 2)

        def train(state: Any, *inputs: Any) -> Any:
            params, moments = state
            updates, moments = adam.update(jax.grad(loss)(params, *inputs), moments)
            return optax.apply_updates(params, updates), moments

        def sample(params: Any, x: Any, logsnr: Any, conditioning: Any) -> Any:
            network = lambda *inputs: self.network.apply({"params": params}, *inputs)[..., :3]  # noqa: E731
            denoise = guided_denoiser(network, conditioning, 3.0, "eps", "static")
            return denoise(x, logsnr)

        self.steps = {"train": jax.jit(train, donate_argnums=0), "sample": jax.jit(sample)}
        self.flops = {
            "train": flops_of(train, self.state, *self.inputs(TRAIN_BATCH)),
            "sample": flops_of(sample, self.params, *self.inputs(SAMPLE_BATCH)),
        }
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Random images, noise levels and text."""
        x, text = (
            jax.random.normal(jax.random.key(i), shape)
            for i, shape in enumerate([(batch, SIZE, SIZE, 3), (batch, TOKENS, WIDTH)])
        )
        mask = jnp.ones((batch, TOKENS), bool)
        return x, jnp.zeros(batch), Conditioning(TextEmbedding(text, mask))

    def __call__(self, what: str) -> float:
        """Seconds of one step."""
        inputs = self.inputs(TRAIN_BATCH if what == "train" else SAMPLE_BATCH)
        jax.block_until_ready(inputs)
        start = time.perf_counter()
        if what == "train":
            self.state = jax.block_until_ready(self.steps["train"](self.state, *inputs))
        else:
            jax.block_until_ready(self.steps["sample"](self.state[0], *inputs))
        return time.perf_counter() - start


class Peer:
    """A peer's network in a process of its own, which does a step whenever it is told."""

    def __init__(self, command: Sequence[str | Path], **environment: str) -> None:
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        described = self._answer()
        self.parameters, self.flops = described["parameters"], described["flops"]

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process ended; its error is above")
        return json.loads(line)

    def __call__(self, what: str) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()


def install_peers() -> Path:
    """The Python of an environment with the peers in it, made if it is not there."""
    python = PEERS / "bin" / "python"
    if not (PEERS / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "torch==2.13.0", *NEEDED], check=True)
        subprocess.run([*pip, "--no-deps", *NETWORKS], check=True)
        (PEERS / "installed").touch()
    return python


def peers(python: Path | None, network: str) -> dict[str, Peer]:
    """Networks of other projects to hold beside ours."""
    script = Path(__file__).with_name("unet_speed_peer.py")
    command = [python or install_peers(), script]
    return {name: Peer([*command, name]) for name in PEERS_OF[network]}


def at_commit(commit: str) -> Peer:
    """Our network as it was at a commit, from a checkout of it under runs/."""
    folder = ROOT / "runs" / "commits" / commit
    git = ["git", "-C", str(ROOT)]
    if not folder.exists():
        subprocess.run([*git, "worktree", "add", "--detach", folder, commit], check=True)
    script = Path(__file__).with_name("unet_speed_commit.py")
    return Peer([sys.executable, script], PYTHONPATH=str(folder))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=list(OURS), default="base", help="default: base")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--python", type=Path, help="Python with the peers, in place of runs/peers")
    parser.add_argument("--beside", metavar="COMMIT", help="compare with our own of a commit alone")
    args = parser.parse_args()
    if args.beside and args.network != "base":
        parser.error("--beside compares the base network")
    others = (
        {args.beside: at_commit(args.beside)} if args.beside else peers(args.python, args.network)
    )
    runners: dict[str, Ours | Peer] = {"imagen-jax": Ours(args.network), **others}
    seconds: dict[tuple[str, str], list[float]] = {}
    rounds = [(i, what, name) for i in range(-1, args.rounds) for what in ("train", "sample")
              for name in runners]  # fmt: skip
    for i, what, name in tqdm(rounds, unit="turn"):
        runners[name](what)  # gets memory back that the others' turns took: not timed
        taken = runners[name](what)
        if i >= 0:  # the first compiles, or warms up
            seconds.setdefault((what, name), []).append(taken)
    print("step    network              M params   GFLOP  seconds  ratio  GFLOP/s")
    for what in ("train", "sample"):
        ours = statistics.median(seconds[what, "imagen-jax"])
        for name, runner in runners.items():
            median = statistics.median(seconds[what, name])
            flops = runner.flops[what]
            print(
                f"{what:<8}{name:<20}{runner.parameters / 1e6:9.1f}"
                f"{flops / 1e9:8.0f}{median:9.2f}{median / ours:7.2f}{flops / median / 1e9:9.0f}"
            )


if __name__ == "__main__":
    main()
