"""Gives every reader of strangers' files thousands of damaged ones: each is an error or a result.

    python tests/fuzz_readers.py                          # 5,000 files for each reader
    python tests/fuzz_readers.py --readers torch t5x --count 300

Each reader runs in a process of its own whose memory is limited to 512 MiB more than it had at
first. What is no UserError (nor an OSError of the file system), what computes for longer than 20
seconds, and what ends the process is reported with the number of its file, which `--seed` makes
again.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "testdata"
MEMORY = 512 * 2**20
SECONDS = 20
NUMBERS = (
    0,
    1,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, "", "x" * 5000, "../../etc/passwd", "/dev/zero", "\x1b[2J", -1, 0, 1, 2**31, 2**63,
    10**30, 1e308, -0.5, float("nan"), float("inf"), [], {}, [[]], {"a": None}, [2**20] * 3,
    "\ud800",
)  # fmt: skip

Seeds = Callable[[Path], None]
"""Writes undamaged files into a folder."""
Read = Callable[[Path], Any]
"""Reads what the folder holds."""


# damage


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Content with a few of its bytes changed, cut, doubled or moved."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 2:
            data[at : at + rng.randrange(64)] = b""
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 32))
        elif kind == 4:
            size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            number = rng.choice(NUMBERS) % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 5:
            data[at:at] = data[at : at + rng.randrange(1, 256)] * rng.choice((1, 2, 50))
        else:
            del data[at:]
    return bytes(data)


def damaged_tree(value: Any, rng: random.Random) -> Any:
    """A value of JSON with one part of it replaced, left out or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        if rng.random() < 0.05:
            deep: Any = value
            for _ in range(rng.choice((10, 2000))):
                deep = [deep]
            return deep
        return rng.choice(VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], damaged_tree(value[at], rng), *value[at + 1 :]]
    key = rng.choice(list(value))
    rest = {k: v for k, v in value.items() if k != key}
    if rng.random() < 0.1:
        return rest
    if rng.random() < 0.1:
        return {**rest, str(rng.choice(VALUES)): value[key]}
    return {**value, key: damaged_tree(value[key], rng)}


def damage(path: Path, rng: random.Random) -> None:
    """Damages a file: as bytes, and one of JSON in half of the cases as what it describes."""
    content = path.read_bytes()
    if content[:1] in (b"{", b"[") and rng.random() < 0.6:
        try:
            tree = damaged_tree(json.loads(content), rng)
            path.write_bytes(json.dumps(tree).encode("utf-8", "surrogatepass"))
            return
        except (ValueError, RecursionError):
            pass
    path.write_bytes(damaged_bytes(content, rng))


# readers


def _safetensors() -> tuple[Seeds, Read]:
    import safetensors.numpy

    from imagen_jax.tensor_files import read_safetensors

    def seeds(folder: Path) -> None:
        arrays = {"a": np.ones((3, 4), np.float32), "b/c": np.zeros(5, np.float16)}
        safetensors.numpy.save_file(arrays, folder / "weights.safetensors", {"format": "pt"})

    def read(folder: Path) -> None:
        read_safetensors(folder / "weights.safetensors")

    return seeds, read


def _torch(name: str) -> tuple[Seeds, Read]:
    from imagen_jax.eval.features.torch_file import read_torch_file

    def read(folder: Path) -> None:
        for array in read_torch_file(folder / name).values():
            np.asarray(array, np.float64).sum()

    return lambda folder: shutil.copy(DATA / "evaluation" / name, folder / name), read  # type: ignore[return-value]


def _t5x(layout: str) -> tuple[Seeds, Read]:
    from imagen_jax.text.t5_checkpoint import load_t5_encoder

    def seeds(folder: Path) -> None:
        shutil.copytree(DATA / "t5x" / layout / "checkpoint_7", folder, dirs_exist_ok=True)

    return seeds, load_t5_encoder


def _hugging_face() -> tuple[Seeds, Read]:
    import safetensors.numpy
    from random_weights import random_tensor

    from imagen_jax.text.t5_checkpoint import load_t5_encoder

    reference = np.load(DATA / "t5_hugging_face.npz")

    def seeds(folder: Path) -> None:
        names = json.loads(str(reference["t5 v1.1 names"]))
        tensors = {name: random_tensor(name, tuple(shape)) for name, shape in names.items()}
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(str(reference["t5 v1.1 config"]))

    return seeds, load_t5_encoder


def _cascade() -> tuple[Seeds, Read]:
    from imagen_jax.checkpoints.cascades import SHIPPED, open_cascade

    def seeds(folder: Path) -> None:
        shutil.copy(SHIPPED / "cascade.json", folder / "cascade.json")

    return seeds, open_cascade


def _record() -> tuple[Seeds, Read]:
    from imagen_jax.cascade import Cascade, read_record, repeat
    from imagen_jax.cascade.files import save_image

    cascade = Cascade.load()
    record = cascade.request("a red apple", negative_prompts="blue", guidance=2.0).record(0)
    undamaged = json.dumps(record).encode()

    def seeds(folder: Path) -> None:
        (folder / "record.json").write_bytes(undamaged)

    def read(folder: Path) -> None:
        content = (folder / "record.json").read_bytes()
        path = save_image(np.zeros((8, 8, 3), np.uint8), {}, folder / "image.png")
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("imagen", content.decode("utf-8", "replace"))
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)
        rng = random.Random(content)
        if content != undamaged and rng.random() < 0.3:  # the image that holds it, too
            path.write_bytes(damaged_bytes(path.read_bytes(), rng))
        repeat(cascade, read_record(path))

    return seeds, read


def _graph() -> tuple[Seeds, Read]:
    from tensorboard.compat.proto import graph_pb2, types_pb2

    from imagen_jax.eval.features.graph_file import layer_names, read_graph_file

    def seeds(folder: Path) -> None:
        graph = graph_pb2.GraphDef()
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        names = ["softmax/weights", "softmax/biases"]
        for layer in layer_names().values():
            names += [f"{layer}/conv2d_params", *(f"{layer}/batchnorm/{part}" for part in parts)]
        for name in names:
            rank = 4 if name.endswith("params") else 2 if name.endswith("weights") else 1
            tensor = graph.node.add(name=name, op="Const").attr["value"].tensor
            tensor.dtype = types_pb2.DT_FLOAT
            for _ in range(rank):
                tensor.tensor_shape.dim.add(size=1)
            tensor.tensor_content = bytes(4)
        (folder / "graph.pb").write_bytes(graph.SerializeToString())

    return seeds, lambda folder: read_graph_file(folder / "graph.pb")


def _votes() -> tuple[Seeds, Read]:
    from imagen_jax.eval.votes import table, tally

    def seeds(folder: Path) -> None:
        pairs = {str(i): {"left": "ab"[i % 2], "prompt": "p", "category": "c"} for i in range(4)}
        key = {"id": "x", "models": {"a": "one", "b": "two"}, "pairs": pairs, "seed": 1}
        (folder / "key.json").write_text(json.dumps(key))
        answers = {str(i): {"alignment": "left", "fidelity": "none"} for i in range(4)}
        votes = {"id": "x", "person": "ann", "votes": answers}
        (folder / "votes.json").write_text(json.dumps(votes))

    return seeds, lambda folder: table(tally(folder / "key.json", [folder / "votes.json"]))


def _prompts() -> tuple[Seeds, Read]:
    from imagen_jax.cascade import Cascade
    from imagen_jax.cli.sample import read_prompts

    cascade = Cascade.load()

    def seeds(folder: Path) -> None:
        text = "\ufeffa red apple\na dog left of a cat\r\n\n\N{GRINNING FACE} and \u4e2d\u6587\n"
        (folder / "prompts.txt").write_text(text)

    return seeds, lambda folder: cascade.request(read_prompts([], str(folder / "prompts.txt")))


def _image(kind: str) -> tuple[Seeds, Read]:
    from PIL import Image

    from imagen_jax.cascade import read_image, read_mask

    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)

    def seeds(folder: Path) -> None:
        Image.fromarray(pixels).save(folder / "image", kind)

    def read(folder: Path) -> None:
        read_image(folder / "image")
        read_mask(folder / "image")

    return seeds, read


READERS: dict[str, Callable[[], tuple[Seeds, Read]]] = {
    "safetensors": _safetensors,
    "torch": lambda: _torch("zip.pth"),
    "torch-legacy": lambda: _torch("legacy.pth"),
    "t5x": lambda: _t5x("t5x"),
    "t5x-scanned": lambda: _t5x("t5x_scan"),
    "t5x-orbax": lambda: _t5x("t5x_orbax"),
    "t5-hugging-face": _hugging_face,
    "cascade": _cascade,
    "record": _record,
    "graph": _graph,
    "votes": _votes,
    "prompts": _prompts,
    "png": lambda: _image("PNG"),
    "jpeg": lambda: _image("JPEG"),
    "webp": lambda: _image("WEBP"),
    "gif": lambda: _image("GIF"),
    "tiff": lambda: _image("TIFF"),
}


class _TooLongError(BaseException):
    pass


def fuzz(
    name: str, count: int, seed: int = 0, note: Callable[[int], None] = lambda _: None
) -> dict:
    """Returns how many files were read and how many refused, and failures as (seed, what)."""
    import warnings

    from imagen_jax.errors import UserError

    def too_long(*_: Any) -> None:
        raise _TooLongError

    warnings.simplefilter("ignore")
    seeds, read = READERS[name]()
    signal.signal(signal.SIGPROF, too_long)
    outcomes: collections.Counter[str] = collections.Counter()
    failures: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as parent:
        whole = Path(parent, "whole")
        whole.mkdir()
        seeds(whole)
        read(whole)  # undamaged, and what it needs is loaded
        files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
        started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(seed, seed + count):
            note(number)
            rng = random.Random(f"{name} {number}")
            folder = Path(parent, "damaged")
            shutil.copytree(whole, folder)
            damage(folder / rng.choice(files), rng)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing: a machine may be busy
            try:
                read(folder)
                outcomes["read"] += 1
            except (UserError, OSError):
                outcomes["refused"] += 1
            except _TooLongError:
                failures.append((number, f"took more than {SECONDS} seconds of computing"))
            except Exception as error:
                failures.append((number, f"{type(error).__name__}: {str(error)[:200]}"))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started) / 1024
    return {"outcomes": dict(outcomes), "failures": failures, "grown MiB": round(grown)}


def _limit_memory() -> None:
    status = Path("/proc/self/status").read_text()
    data = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * data + MEMORY, resource.RLIM_INFINITY))


def _work(name: str, count: int, seed: int, at: Path) -> None:
    limited = False

    def note(number: int) -> None:
        nonlocal limited
        if not limited:  # the libraries are loaded by now
            _limit_memory()
            limited = True
        at.write_text(str(number))

    print(json.dumps(fuzz(name, count, seed, note)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--at", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.at:
        _work(args.readers[0], args.count, args.seed, Path(args.at))
        return 0
    failed = False
    for name in args.readers:
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder, "at")
            command = [sys.executable, __file__, "--readers", name, "--count", str(args.count),
                       "--seed", str(args.seed), "--at", str(at)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                failed = True
                where = at.read_text() if at.exists() else "none"
                print(
                    f"{name}: ended with {done.returncode} at file {where}: {done.stderr[-1500:]}"
                )
                continue
            result = json.loads(done.stdout.splitlines()[-1])
        failed |= bool(result["failures"])
        print(f"{name}: {result['outcomes']}, {result['grown MiB']} MiB more", flush=True)
        for number, what in result["failures"][:10]:
            print(f"  file {number}: {what}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
