"""Cascades, records and programs of strangers: each attempt is one clear error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from PIL import Image
from ports import free_port

from imagen_jax.cascade import Cascade, read_record, repeat, run_exported
from imagen_jax.cascade.files import save_image
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.errors import UserError
from imagen_jax.files import read_json
from imagen_jax.sharding import join_hosts
from imagen_jax.tensor_files import read_safetensors


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("attacks")
    return tiny.write_cascade(parent / "cascade", tiny.encoder())


@pytest.fixture
def directory(shipped: Path, tmp_path: Path) -> Path:
    """An exported cascade, to be changed."""
    export_cascade(shipped, tmp_path / "exported")
    return tmp_path / "exported"


def change(directory: Path, do: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((directory / "cascade.json").read_text())
    do(record)
    (directory / "cascade.json").write_text(json.dumps(record))


def rename(record: dict[str, Any], name: str) -> None:
    config = record["config"]
    config["stages"][name] = config["stages"].pop("base")
    config["cascade"] = [name, "sr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["/elsewhere/owned", "a/b", "a\\b", "", " ", "a b", "\x1b[2J", "é"]
)
def test_names_of_stages_are_no_paths(directory: Path, name: str, tmp_path: Path) -> None:
    absolute = str(tmp_path / "owned") if name.startswith("/") else name
    victim = tmp_path / "owned.safetensors"
    shutil.copy(directory / "base.safetensors", victim)
    before = victim.read_bytes()
    change(directory, lambda record: rename(record, absolute))
    with pytest.raises(UserError, match="names are of letters, digits, _ and -"):
        export_cascade(directory, tmp_path / "output")
    assert victim.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("content", [
    b"[]", b"{}", b"null", b"{" * 100_000, b"[" * 1_000_000, b'{"config": 1}', b"\xff\xfe", b"",
    b'{"config": {"cascade": ["base"], "stages": {}}, "encoder": {}, "source": {}}',
    b'{"config": {"cascade": 3, "stages": []}, "encoder": {"name": 1, "fingerprint": 2},'
    b' "source": {}}',
    b'{"config": {"a.b": 1}, "encoder": {}, "source": {}}', b"1" * 5000, b'{"a": ' * 50_000,
])  # fmt: skip
def test_descriptions_of_cascades_that_are_something_else(directory: Path, content: bytes) -> None:
    (directory / "cascade.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cascade\.json|stage"):
        open_cascade(directory)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "network.blocks",
            [10**9, 1],
            "blocks is beyond",
        ),
        ("network.blocks", [2000, 1], r"2,00\d blocks and layers; a network may have 1,000"),
        ("network.text_layers", 5000, "blocks and layers; a network may have 1,000"),
        ("network.channels", 8 * 10**9, "channels is beyond 1,048,576"),
        ("network.channels", 8 * 10**30, "channels is beyond 1,048,576"),
        ("network.head_channels", -(10**9), "head_channels is beyond"),
        ("resolution", 2**40, "resolution is 1099511627776; it must be from 1 to 65,536"),
        ("resolution", 0, "resolution is 0; it must be from 1 to 65,536"),
    ],
)
def test_networks_larger_than_any_are_not_traced(
    directory: Path, place: str, value: Any, message: str
) -> None:
    def enlarge(record: dict[str, Any]) -> None:
        section = record["config"]["stages"]["base"]
        *sections, key = place.split(".")
        for name in sections:
            section = section[name]
        section[key] = value

    change(directory, enlarge)
    with pytest.raises(UserError, match=message):
        open_cascade(directory)


def test_cascades_of_stages_without_end(directory: Path) -> None:
    whole = (directory / "cascade.json").read_bytes()
    change(directory, lambda record: record["config"].update(cascade=["base"] * 100_000))
    with pytest.raises(UserError, match="the cascade has 100,000 stages; at most 32 are read"):
        open_cascade(directory)
    (directory / "cascade.json").write_bytes(whole)
    change(directory, lambda record: record["config"].update(cascade=["base", "sr", "base"]))
    with pytest.raises(UserError, match="a stage comes twice in the cascade: base, sr, base"):
        open_cascade(directory)
    (directory / "cascade.json").write_bytes(whole)
    more = {f"s{i}": json.loads(whole)["config"]["stages"]["base"] for i in range(3000)}
    change(directory, lambda record: record["config"]["stages"].update(more))
    with pytest.raises(UserError, match="the cascade has 3,002 stages"):
        open_cascade(directory)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `theirs` that can be imported; the file that it writes where it is."""
    ran = tmp_path / "ran"
    code = f"from foreign_network import Foreign\nopen({str(ran)!r}, 'w').close()\n"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "theirs.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return ran


def name_network(record: dict[str, Any], kind: str) -> None:
    record["config"]["stages"]["base"]["network"] = {"kind": kind, "width": 8}


def test_modules_that_a_cascade_names_are_not_imported(
    directory: Path, module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imagen_jax.main import main

    change(directory, lambda record: name_network(record, "theirs:Foreign"))
    with pytest.raises(UserError, match=r"'theirs' is not imported: .* --import theirs"):
        open_cascade(directory)
    argv = ["export", "--workdir", str(directory), "--output", str(tmp_path / "out")]
    assert main(argv) == 64
    assert "--import theirs" in capsys.readouterr().err
    assert not module.exists()
    assert main([*argv, "--import", "theirs"]) == 64
    assert "the weights of stage 'base'" in capsys.readouterr().err, "they are of another network"
    assert module.exists()
    assert open_cascade(directory).stages[0].network.width == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["antigravity:x", "os:system", ":Foreign", "sys:", "imagen_jax:Cascade", "a b:c",
             "imagen_jax.models.unet:jax", "../theirs:Foreign", ".theirs:Foreign"],
)  # fmt: skip
def test_names_of_networks_that_are_none(directory: Path, module: Path, kind: str) -> None:
    change(directory, lambda record: name_network(record, kind))
    loaded = set(sys.modules)
    with pytest.raises(UserError, match=r"stages\.base\.network\.kind is "):
        open_cascade(directory)
    assert set(sys.modules) == loaded


@pytest.fixture
def record_of_stage(directory: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Path of the record of a work directory's only stage, which is not there, and its content."""
    path = tmp_path / "workdir" / "base" / "stage.json"
    (path.parent / "checkpoints" / "1").mkdir(parents=True)
    return path, json.loads((directory / "cascade.json").read_text())


def test_work_directories_name_no_modules_either(
    record_of_stage: tuple[Path, dict[str, Any]], module: Path
) -> None:
    path, record = record_of_stage
    name_network(record, "theirs:Foreign")
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="'theirs' is not imported"):
        open_cascade(path.parent.parent)
    assert not module.exists()


def test_records_of_stages_that_are_something_else(
    record_of_stage: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from imagen_jax.main import main

    path, record = record_of_stage
    workdir = path.parent.parent
    for key in ("config", "encoder", "source"):
        for value in (None, 1, [], {}, "x"):
            path.write_text(json.dumps(record | {key: value}))
            with pytest.raises(UserError):
                open_cascade(workdir)
    for content in ("[" * 100_000, "1" * 5000, "{", "[]", '{"config": ' * 50_000):
        path.write_text(content)
        with pytest.raises(UserError, match=r"stage\.json"):
            open_cascade(workdir)
    record["config"]["cascade"] = ["base", "\x1b]0;pwn\x07"]
    path.write_text(json.dumps(record))
    assert main(["sample", "a red apple", "--workdir", str(workdir)]) == 64
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert "\\x1b]0;pwn" in said


@pytest.mark.slow
def test_damaged_weights(directory: Path) -> None:
    path = directory / "base.safetensors"
    content = path.read_bytes()
    shapes: dict[str, Any] = {}
    cases = {
        "cut": content[:-100], "of no length": b"", "zeros": bytes(64),
        "a long header": (2**63).to_bytes(8, "little") + b"{}",
        "a deep header": (200_000).to_bytes(8, "little") + b"[" * 200_000,
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "others": safetensors.numpy.save({"a": np.zeros(1, np.float32)}),
        "a name within another": safetensors.numpy.save(
            {"a": np.zeros(1, np.float32), "a/b": np.zeros(1, np.float32)}),
        "whole numbers": safetensors.numpy.save(
            {name: value.astype(np.int8) for name, value in
             safetensors.numpy.load(content).items()}),
    }  # fmt: skip
    for name, damaged in cases.items():
        path.write_bytes(damaged)
        cascade = open_cascade(directory)
        with pytest.raises(UserError, match="base") as error:
            cascade.weights(cascade.stages[0])
        shapes[name] = str(error.value)
    assert "Git LFS" in shapes["a pointer"]
    assert "I8, not float16 or float32" in shapes["whole numbers"]


def test_damaged_safetensors_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    for content in (b"", bytes(100), b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged\.safetensors"):
            read_safetensors(path)
    header = b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(UserError, match="e8m0"):
        read_safetensors(path)


def test_json_of_strangers(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content in ("[" * 1_000_000, "[]", "", "{", "NaN", '"x"', "1" * 5000, '{"a": ' * 50_000):
        path.write_text(content)
        with pytest.raises(UserError, match=r"file\.json"):
            read_json(path, "description")


# records


@pytest.fixture(scope="module")
def cascade(shipped: Path) -> Cascade:
    return Cascade.load(shipped)


@pytest.mark.parametrize("size", [[25600, 25600], [2**31, 2**31], [-8, 8], ["8", "8"], [], 8, None])
def test_records_that_ask_for_a_hundred_gigabytes(cascade: Cascade, size: Any) -> None:
    record = json.loads(json.dumps(cascade.request("red").record(0)))
    assert repeat(cascade, record).stages[-1].size == (tiny.SR, tiny.SR)
    for stage in record["stages"].values():
        stage["size"] = size
    with pytest.raises(UserError):
        repeat(cascade, record)


@pytest.mark.parametrize("value", [None, 1, "x", [], [1], {"a": 1}, True, float("nan")])
def test_records_with_values_of_other_types(cascade: Cascade, value: Any) -> None:
    whole = json.loads(json.dumps(cascade.request("red").record(0)))
    places: list[list[str]] = [[key] for key in whole if key != "version"]
    for name, stage in whole["stages"].items():
        places += [["stages", name], *(["stages", name, key] for key in stage)]
        places += [["stages", name, "settings", key] for key in stage["settings"]]
    places.remove(["stages", "base", "size"])  # which follows from that of the last stage
    for place in places:
        record = json.loads(json.dumps(whole))
        node = record
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        try:
            repeat(cascade, record)
        except UserError:
            continue
        assert (place[-1], value) in MAY_BE, (place, value)


MAY_BE = [
    ("prompt", "x"), ("negative_prompt", "x"), ("seed", 1), ("given", {"a": 1}), ("edit", None),
    ("dtype", None), ("steps", 1), ("guidance", 1), ("aug_level", 1), ("percentile", 1), ("pad", 1),
    *((key, value) for value in (None, 1) for key in
      ("guidance_min_logsnr", "guidance_max_logsnr", "end_logsnr", "threshold_cap")),
]  # fmt: skip
"""Values among these that stand for something in a record."""


def test_records_nested_deep_and_with_escapes(
    cascade: Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imagen_jax.main import main

    image = np.zeros((8, 8, 3), np.uint8)
    record = json.loads(json.dumps(cascade.request("red").record(0)))
    record["stages"] = {"\x1b]0;pwn\x07\x1b[2J": next(iter(record["stages"].values()))}
    path = save_image(image, record, tmp_path / "escapes.png")
    with pytest.raises(UserError):
        repeat(cascade, read_record(path))
    assert main(["sample", "--from", str(path), "--output", str(tmp_path / "out")]) == 64
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\x07" not in said
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("imagen", "[" * 100_000)
    Image.fromarray(image).save(tmp_path / "deep.png", pnginfo=info)
    with pytest.raises(UserError, match="does not say how it was made"):
        read_record(tmp_path / "deep.png")


# programs


def test_programs_that_call_other_code_are_not_run(tmp_path: Path) -> None:
    def call(x: Any) -> Any:
        result = jax.ShapeDtypeStruct((4,), jnp.float32)
        return jax.ffi.ffi_call("anything", result)(x)

    disabled = [jax.export.DisabledSafetyCheck.custom_call("anything")]
    program = jax.export.export(jax.jit(call), disabled_checks=disabled)(jnp.zeros(4))
    (tmp_path / "base.jax").write_bytes(program.serialize())
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, tmp_path / "base.safetensors")
    record = {"program": "base.jax", "weights": "base.safetensors"}
    (tmp_path / "base.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"base\.jax calls code outside of it .*@anything"):
        run_exported.load(str(tmp_path), "base")
    plain = jax.export.export(jax.jit(lambda weights, x: x["a"] + weights["a"]))
    shapes = {"a": jax.ShapeDtypeStruct((1,), jnp.float32)}
    (tmp_path / "base.jax").write_bytes(plain(shapes, shapes).serialize())
    # Paths of another folder are those beside the metadata.
    record = {"program": "/dev/null/../base.jax", "weights": "../../elsewhere/base.safetensors"}
    (tmp_path / "base.json").write_text(json.dumps(record))
    _, run = run_exported.load(str(tmp_path), "base")
    np.testing.assert_array_equal(run({"a": np.ones(1, np.float32)}), [1])


# coordinators

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 in /proc/net."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_coordinators_on_this_machine_listen_to_it_alone(host: str) -> None:
    assert join_hosts  # what runs below
    port = free_port()
    code = f"""
from imagen_jax.sharding import join_hosts
join_hosts("0/1@{host}:{port}")
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{{table}}").readlines()[1:]:
        address, _, state = line.split()[1:4]
        if state == "0A" and address.endswith(":{port:04X}"):
            print(address)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    listening = {address.rpartition(":")[0] for address in done.stdout.split()}
    assert listening, "nothing listens"
    assert listening <= LOOPBACK
