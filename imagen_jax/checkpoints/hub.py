"""Pipelines of diffusers from the Hugging Face hub, by huggingface_hub, which resumes downloads."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.errors import UserError

PLAIN = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Names of weights of no variant."""
CLIENTS = ("httpx", "httpx2", "huggingface_hub", "requests")
"""Packages whose errors say that the hub was not reached, by the version of huggingface_hub."""


def download_pipeline(
    repository: str, variant: str | None = None, text: bool = True, safety: bool = True
) -> Path:
    """Download a pipeline's networks, and return the folder that has them.

    It lies in the hub's cache on this machine; what is there already is not downloaded again, and
    an interrupted download resumes.

    Args:
      repository: OWNER/NAME on the hub.
      variant: variant of the weights, such as "fp16"; None is the plain one, which is also taken of
        the text encoder where that has no such variant.
      text: with text_encoder/ and tokenizer/.
      safety: with safety_checker/ and watermarker/, where the repository has them.

    Raises:
      UserError: huggingface_hub is not installed; no such repository; its licence was not accepted
        or nobody is logged in; the hub cannot be reached.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            "a download from the hub needs huggingface_hub: pip install huggingface_hub; or "
            "download the files in another way, and give their folders"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"{repository!r} is no repository on the hub; it must be OWNER/NAME")
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        names = _wanted(HfApi().list_repo_files(repository), variant, text, safety)
        folder = snapshot_download(repository, allow_patterns=names)
    except errors.GatedRepoError as error:
        raise UserError(
            f"the hub does not give {repository} to you: accept its licence on its page there, "
            "then log in on this machine by `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no repository {repository}, or shows it to nobody who is not logged in "
            "(`hf auth login`)"
        ) from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in CLIENTS:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{repository} could not be downloaded ({reason}); the same command resumes"
        ) from error
    return Path(folder)


def _wanted(names: Sequence[str], variant: str | None, text: bool, safety: bool) -> list[str]:
    """The files of a repository that an import reads."""
    of_safety = ("safety_checker", "watermarker")
    weights = {part: [name for name in names if name.startswith(f"{part}/")]
               for part in ("unet", "text_encoder", *of_safety)}  # fmt: skip
    found = [name for name in names if name.startswith(("LICENSE", "scheduler/"))]
    found += _weights(weights["unet"], variant)
    if text:
        of_text = _weights(weights["text_encoder"], variant)
        found += of_text or _weights(weights["text_encoder"], None)
        found += [name for name in names if name.startswith("tokenizer/")]
    for part in of_safety if safety else ():
        found += _weights(weights[part], variant) or _weights(weights[part], None)
        found += [name for name in weights[part] if name == f"{part}/config.json"]
    found += [name for name in names if safety and name.startswith("feature_extractor/")]
    parts = ("unet/", "text_encoder/") if text else ("unet/",)
    return found + [f"{part}config.json" for part in parts]


def _weights(names: Sequence[str], variant: str | None) -> list[str]:
    """Weights of a variant in safetensors, and their index: never pickled ones."""
    files = {name: name.rpartition("/")[2] for name in names if ".safetensors" in name}
    if variant is None:
        return [name for name, file in files.items() if PLAIN.fullmatch(file)]
    of_variant = re.compile(rf".*\.{re.escape(variant)}[.-].*")
    return [name for name, file in files.items() if of_variant.fullmatch(file)]
