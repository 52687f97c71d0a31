"""Weights on disk: safetensors files with a note in JSON, whole or not at all; never pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gpattern_bench.base.files import replacing
from gpattern_bench.errors import MethodError

__all__ = ["fits", "load_into", "read_tensors", "write_tensors"]

_NOTE = "gpattern_bench"  # the only key of the header's metadata: the order of several would vary


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
    """Write tensors and a note; a file that is there stays until the new one is whole."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as beside:
        safetensors.torch.save_file(plain, beside, {_NOTE: json.dumps(note)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what :func:`write_tensors` wrote: the tensors, on the CPU, and the note.

    Raises
    ------
    MethodError
        The file is missing, cut off or something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})[_NOTE])
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise MethodError(
            f"{path} holds no readable weights ({error!r}); expected a safetensors file that this "
            "package wrote: copy it again, or train again"
        ) from error


def fits(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Check that tensors are those of a module: the same names, shapes and types, all finite.

    Raises
    ------
    MethodError
        They are not; the text names the first five.
    """
    wanted = module.state_dict()
    problems = [
        f"{name}: expected {_kind(wanted.get(name))}, got {_kind(tensors.get(name))}"
        for name in sorted(wanted.keys() | tensors.keys())
        if _kind(wanted.get(name)) != _kind(tensors.get(name))
    ]
    problems += [
        f"{name}: has values that are not finite"
        for name, value in tensors.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MethodError(
            f"{source} does not hold the weights of this model: {'; '.join(problems[:5])}{more}. "
            "Copy the whole folder again, or train again"
        )


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Fill a module with tensors that fit it (:func:`fits`).

    Raises
    ------
    MethodError
        They do not.
    """
    fits(module, tensors, source)
    module.load_state_dict(dict(tensors))


def _kind(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
