"""Tensors in one file of the safetensors format, written and read as a stream.

    8 bytes    length of the header
    header     JSON: name -> {dtype, shape, data_offsets}
    data       one tensor after another

Neither direction holds more than one piece (`PIECE` bytes) on the host at a time, whatever the size
of the tensors; the file's sha256 is taken on the way. Any reader of safetensors reads the files.
Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

PIECE = 4 * 2**20
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Writes the tensors, wherever they lie; returns the file's sha256."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        shape, kind = list(tensor.shape), NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header_bytes = json.dumps(header).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(header_bytes).to_bytes(8, "little"), header_bytes):
            file.write(part)
            digest.update(part)
        for tensor in tensors.values():
            for chunk in _chunks(tensor.detach(), tensor.element_size()):
                flat = chunk.contiguous().reshape(-1)
                content = flat.cpu().view(torch.uint8).numpy().data
                file.write(content)
                digest.update(content)
    return digest.hexdigest()


def _chunks(tensor: torch.Tensor, width: int) -> Iterator[torch.Tensor]:
    """The tensor in views of `PIECE` bytes, an element taking `width` of them. One that is no
    stretch of memory is cut along its rows, so that no copy of all of it is made."""
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(PIECE // width)
        return
    yield from tensor.split(max(1, PIECE // (width * tensor[0].numel())))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies in the file, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile(Mapping[str, torch.Tensor]):
    """The tensors of a file, by name; nothing is read before it is asked for.

    Raises:
        ValueError: it is no such file, or cut short.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.entries = {name: _entry(entry, 8 + length) for name, entry in header.items()}
        if max((entry.stop for entry in self.entries.values()), default=0) > path.stat().st_size:
            raise ValueError("cut short")

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self.copy_to(name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor; None where there is none of the name."""
        return self.entries[name].shape if name in self.entries else None

    @torch.no_grad()
    def copy_to(self, name: str, target: torch.Tensor) -> None:
        """Reads a tensor into one of its shape, on whatever device, piece by piece."""
        entry = self.entries[name]
        assert entry.shape == tuple(target.shape), f"{name}: {entry.shape} into {target.shape}"
        with self.path.open("rb") as file:
            file.seek(entry.start)
            for chunk in _chunks(target, entry.dtype.itemsize):
                chunk.copy_(_read(file, entry.dtype, chunk.numel()).view(chunk.shape))


def put_tensor(
    tensors: TensorFile | Mapping[str, torch.Tensor], name: str, target: torch.Tensor
) -> None:
    """Copies a tensor; from a file without ever holding all of it on the host."""
    if isinstance(tensors, TensorFile):
        tensors.copy_to(name, target)
    else:
        target.copy_(tensors[name])


def _entry(entry: Mapping[str, object], offset: int) -> Entry:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError("its header is not one of safetensors")
    dtype = DTYPES[str(entry["dtype"])]
    start, stop = offsets
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("its header does not add up")
    return Entry(dtype=dtype, shape=tuple(shape), start=offset + start, stop=offset + stop)


def _read(file: BinaryIO, dtype: torch.dtype, count: int) -> torch.Tensor:
    chunk = torch.empty(count, dtype=dtype)
    view = chunk.view(torch.uint8).numpy().data
    if file.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise ValueError("cut short")
    return chunk
