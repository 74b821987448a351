"""Load a config file, override single keys of it, and check it section by section.

A config is a Python file with a function `get_config() -> ml_collections.ConfigDict`. It is the
only place where a number stands: code reads `config.x`, or the frozen dataclass that `build` makes
of a section, whose fields say which keys there must be. A misspelt, missing or mistyped key is an
error that names the key and the choices, raised before any work begins.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import traceback
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict, FrozenConfigDict

from imagen_jax.errors import UserError
from imagen_jax.paths import local_path

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
)
"""The shipped configs: inside the package where it is installed, beside it in a checkout. A name
without a folder is looked up here."""

Section = TypeVar("Section")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> FrozenConfigDict:
    """Runs `get_config()` of a config file, applies overrides and freezes the result.

    Modules that it names for networks are imported.

    Args:
      path: a file such as "my/config.py", or the name of a shipped config such as "quickstart".
      overrides: "key=value" each, with the full path of the key: "stages.base.batch_size=16". The
        value is read as a Python literal, and as a plain string where it is none.

    Returns:
      The config; an assignment to it raises an error.

    Example:
      >>> from imagen_jax import load_config
      >>> config = load_config("quickstart", ["stages.base.train.steps=10"])
      >>> config.stages.base.train.steps
      10

    Raises:
      UserError: there is no such file; the message lists the configs there are; the file has no
        `get_config` or cannot be run, or an override is malformed, names an unknown key or a whole
        section, or has a value of another type than the config's own; or a network's module is not
        there.
    """
    file = _find(path)
    spec = importlib.util.spec_from_file_location(f"imagen_jax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config {file} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"config {file} must define get_config() -> ml_collections.ConfigDict")
        returned = module.get_config()
    except UserError:
        raise
    except Exception as error:  # of whatever kind the file's own code raises
        raise UserError(
            f"config {file} cannot be run: {_where(error, file)}{type(error).__name__}: {error}"
        ) from error
    if not isinstance(returned, Mapping | ConfigDict):
        raise UserError(f"get_config() of {file} returns {returned!r}, not a ConfigDict")
    # Sections made of one dict would stay one object: an override of the first would change both.
    config = ConfigDict(_separate(returned))
    for override in overrides:
        _override(config, override)
    for name, stage in config.get("stages", {}).items():
        kind = stage.get("network", {}).get("kind") if isinstance(stage, ConfigDict) else None
        named, colon, _ = str(kind).partition(":")
        if colon:
            import_module(named, f"stages.{name}.network.kind is {kind!r}")
    return FrozenConfigDict(config)


def import_module(name: str, where: str) -> None:
    """Imports a module of the user's own.

    Args:
      name: name of the module.
      where: what names it, for the message.

    Raises:
      UserError: there is none.
    """
    try:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ModuleNotFoundError(name=name)
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that theirs imports
        raise UserError(
            f"{where}, but there is no module {name!r}; install it, or put the folder that it is "
            "in on PYTHONPATH"
        ) from error


def build(cls: type[Section], values: Mapping[str, Any], where: str) -> Section:
    """Makes a frozen dataclass, or a linen module, of a config section.

    Fields that are dataclasses themselves are built from sub-sections. A field with a default may
    be left out of the section. Types are checked: a whole number is taken for a float, a list for a
    tuple, and `Literal` fields name their choices.

    Args:
      cls: the dataclass; what its `__post_init__` raises as UserError gets `where` in front.
      values: the section.
      where: the section's path in the config, "stages.base.model", for the messages.

    Raises:
      UserError: an unknown or missing key, or a value of another type or outside its choices.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f"{where} must be a section of keys, got {values!r}")
    hints = _hints(typing.cast(Any, cls))
    of_linen = {"parent", "name"} if hasattr(cls, "init_with_output") else set()
    fields = {
        f.name: f
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init and f.name not in of_linen
    }
    for key in values:
        if key not in fields:
            raise UserError(_unknown_key(f"{where}.{key}", key, fields))
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(
            f"{where} lacks the key{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}; "
            f"{cls.__name__} has the keys {', '.join(fields)}"
        )
    checked = {key: _check(values[key], hints[key], f"{where}.{key}") for key in values}
    try:
        return cls(**checked)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


@functools.cache  # which costs more than all else of a request
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def to_plain(value: Any, where: str = "config") -> Any:
    """Turns a config into dicts, lists, strings and numbers, as JSON knows them.

    Raises:
      TypeError: for a value of any other type, naming its key.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name), f"{where}.{f.name}")
                for f in dataclasses.fields(value)}  # fmt: skip
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): to_plain(value[key], f"{where}.{key}") for key in value}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} must be a number, string, bool, None or list, got {value!r}")


def _where(error: Exception, file: Path) -> str:
    """Return "line 3: ", the last line of a file that an error comes from; "" if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    return f"line {lines[-1]}: " if lines else ""


def _find(path: str | Path) -> Path:
    file = local_path(path)
    if file.is_file():
        return file
    named = CONFIGS / f"{file}.py"
    if file.name == str(path) and named.is_file():
        return named
    known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__"))
    raise UserError(
        f"no config {str(path)!r}: give the path of a file, or one of the names {known or '(none)'}"
    )


def _separate(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        return {key: _separate(value[key]) for key in value}
    return value


def _override(config: ConfigDict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {override!r} must be of the form key=value, as in seed=1")
    path = key.strip().split(".")
    section: Any = config
    for depth, name in enumerate(path):
        if not isinstance(section, ConfigDict):
            raise UserError(f"override {override!r}: {'.'.join(path[:depth])} is no section")
        if name not in section:
            # A stage's section may leave out what has a default; make_stage checks all of them.
            if path[0] == "stages" and 2 <= depth == len(path) - 1:
                section[name] = _literal(text.strip())
                return
            raise UserError(f"override {override!r}: " + _unknown_key(key.strip(), name, section))
        if depth < len(path) - 1:
            section = section[name]
    old = section[path[-1]]
    if isinstance(old, ConfigDict):
        keys = ", ".join(old)
        raise UserError(f"override {override!r}: {key} is a section; set one of its keys: {keys}")
    new = _literal(text.strip())
    if isinstance(old, float) and _is_int(new):
        new = float(new)
    if isinstance(old, tuple | list) and isinstance(new, tuple | list):
        new = type(old)(new)
    if old is not None and new is not None and type(new) is not type(old):
        raise UserError(
            f"override {override!r}: {key} is of type {type(old).__name__} ({old!r}), "
            f"got {type(new).__name__} ({new!r})"
        )
    with section.ignore_type():
        section[path[-1]] = new


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text, text)


def _unknown_key(path: str, key: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(key, choices, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown key {path!r}{hint}; there are {', '.join(choices)}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(value: Any, hint: Any, where: str) -> Any:
    """Returns the value in the form of the type hint, or raises a UserError naming the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where} must be one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return _check(value, options[0], where)
        for option in options:
            try:
                return _check(value, option, where)
            except ValueError:
                continue
        raise UserError(f"{where} must be of type {hint}, got {value!r}")
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"{where} must be a tuple, got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) != len(value):
            raise UserError(f"{where} must have {len(args)} entries, got {value!r}")
        return tuple(
            _check(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True))
        )
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])):
        if not isinstance(value, Mapping | ConfigDict):
            raise UserError(f"{where} must be a section of keys, got {value!r}")
        return {key: _check(value[key], args[1], f"{where}.{key}") for key in value}
    if hint is float and _is_int(value):
        return float(value)
    if (hint is int and not _is_int(value)) or not isinstance(value, hint):
        raise UserError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value
