"""The authors' release of 2015-10-02: the weights of its Caffe model file, ``phseg_v5.caffemodel``.

A ``.caffemodel`` is a NetParameter of Caffe's protocol buffers: layers, each with a name and its
weights as blobs. Older files keep the layers in field 2 (V1LayerParameter), newer ones in field
100 (LayerParameter). Both are read; Caffe is not needed, and nothing in the file is executed.

A hostile file costs no more memory than a large one: messages are walked here, one by one, and a
blob is parsed only once its size has been found to be that of its layer.

The layers go one to one into the preset ``release``. What is known of the release, from published
descriptions by those who have opened it and from the scripts that came with it:

========================  =======================================================================
weights                   V1 layers, blobs (num, channels, height, width), packed float32, neither
                          flipped nor transposed against PyTorch; up-convolutions (in, out, 2, 2)
concatenation             upsampled map first, then the centre of the contracting path's
input                     grey values in [0, 1] (``im2double``: of 8-bit images value / 255), not
                          normalised further for PhC-U373 (``normImage = false``)
output                    two scores, the second is the cell
border                    mirrored; scores averaged over the 4 flips; objects of 500 px or fewer
                          dropped, and those wholly in the outermost 50 px
========================  =======================================================================

None of it could be verified on the file itself, which has no licence that lets it be shipped: that
the names are these and all of them, that the scores agree with Caffe's own on the same image, and
that the figures of Table 2 come out.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unet_repro.config import MODELS, UNetConfig
from unet_repro.errors import InputError, note
from unet_repro.files.file_access import open_binary
from unet_repro.network.model import UNet

_VALUE_BYTES = 20  # most of a weight in a file: value and gradient as doubles, each with its tag
_SPARE_BYTES = 2**24  # and of all the rest
_MOST_LAYERS = 1000
_MOST_FIELDS = 10_000  # of a network, or of a layer
_MOST_SHAPE_BYTES = 64
# fields of NetParameter, V1LayerParameter and LayerParameter
_V1_LAYERS, _LAYERS = 2, 100
_NAME = {_V1_LAYERS: 4, _LAYERS: 1}
_BLOBS = {_V1_LAYERS: 6, _LAYERS: 7}
_OTHER_FORMATS = {
    b"\x89HDF": "is HDF5, as the authors' later release has it, with a network of its own; needed "
    "is the binary phseg_v5.caffemodel of 2015",
    b"\x1f\x8b": "is a compressed archive; unpack it and give the .caffemodel in it",
    b"PK": "is a compressed archive; unpack it and give the .caffemodel in it",
}


def read_caffemodel(
    path: str | os.PathLike[str],
    *,
    input_mean: float = 0.0,
    input_std: float = 255.0,
    config: UNetConfig = MODELS["release"],
) -> UNet:
    """Read the weights of the authors' release into the preset ``release``, in eval mode.

    Parameters
    ----------
    path : path-like
        ``phseg_v5.caffemodel``, or another model of the same layers: V1 or V2, blobs with a shape
        or with num, channels, height and width, float32 packed or not, or float64, which is
        rounded.
    input_mean, input_std : float
        ``(grey value - mean) / std`` goes into the first convolution. The default makes [0, 1] of
        8-bit images, as the release's script does; 16-bit images need a deviation of 65535. The
        file does not say it.
    config : UNetConfig
        Depth, channels and classes, where they are not the release's.

    Raises
    ------
    InputError
        The file cannot be read, is too large, truncated or of another format; a layer is missing,
        there twice, unknown, of another shape, or holds values that are not finite. The package
        protobuf is missing.

    Notes
    -----
    Takes memory for the file and the network, and for the largest blob twice.
    """
    path = Path(path)
    network = UNet(replace(config, input_mean=(input_mean,), input_std=(input_std,)))
    layers = caffe_layers(network)
    content = _content(path, sum(value.numel() for value in network.parameters()))
    found: set[str] = set()
    with torch.no_grad():
        for name, blobs in _layers(path, content):
            if name not in layers:
                raise InputError(
                    f"{path}: holds weights of a layer {name!r:.60}, which the release has not"
                )
            if name in found:
                raise InputError(f"{path}: layer {name} is there twice")
            found.add(name)
            _fill(layers[name], blobs, f"{path}: layer {name}")
    missing = [name for name in layers if name not in found]
    if missing:
        raise InputError(
            f"{path}: has no weights of layer {missing[0]} ({len(missing)} of the release's "
            f"{len(layers)} layers are missing); needed is phseg_v5.caffemodel of the authors' "
            "release"
        )
    return network.eval()


def origin(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return where weights came from, for a model file's record."""
    with open_binary(Path(path)) as file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    return {"imported": {"format": "caffemodel", "sha256": digest.hexdigest()}}


def caffe_layers(network: UNet) -> dict[str, nn.Conv2d | nn.ConvTranspose2d]:
    """Return the layers that hold weights by the release's names, in the order of its network.

    Level 0 is the first; a, b, c are the maps of a level before and after its convolutions.

    Examples
    --------
    >>> list(caffe_layers(UNet(UNetConfig(depth=1, base_channels=1))))[:4]
    ['conv_d0a-b', 'conv_d0b-c', 'conv_d1a-b', 'conv_d1b-c']
    """
    depth = network.config.depth
    named: dict[str, Any] = {}
    for level, contraction in enumerate(network.contracting_path):
        convolutions = [layer for layer in contraction if isinstance(layer, nn.Conv2d)]  # type: ignore[attr-defined]
        named |= zip((f"conv_d{level}a-b", f"conv_d{level}b-c"), convolutions)
    for expansion, level in zip(network.expanding_path, reversed(range(depth))):
        below = f"d{depth}c" if level == depth - 1 else f"u{level + 1}d"
        named[f"upconv_{below}_u{level}a"] = expansion.up_convolution
        convolutions = [layer for layer in expansion.convolutions if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]
        named |= zip((f"conv_u{level}b-c", f"conv_u{level}c-d"), convolutions)
    return named | {"conv_u0d-score": network.classifier}


def _content(path: Path, parameters: int) -> memoryview:
    """Return the bytes of a file that may hold so many weights."""
    most = parameters * _VALUE_BYTES + _SPARE_BYTES
    with open_binary(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(
            f"{path}: is larger than {most:,} bytes, too large for {parameters:,} weights"
        )
    for magic, what in _OTHER_FORMATS.items():
        if content.startswith(magic):
            raise InputError(f"{path}: {what}")
    return memoryview(content)


def _layers(path: Path, content: memoryview) -> Iterator[tuple[str, list[memoryview]]]:
    """Yield the name and the encoded blobs of each layer that has blobs."""
    number_of_layers = 0
    try:
        for field, layer in _fields(content):
            if field not in _NAME:
                continue
            number_of_layers += 1
            if number_of_layers > _MOST_LAYERS:
                raise InputError(f"{path}: has more than {_MOST_LAYERS} layers")
            name, blobs = "", []
            for part, value in _fields(layer):
                if part == _NAME[field]:
                    name = bytes(value[:200]).decode("utf-8", "replace")
                elif part == _BLOBS[field]:
                    blobs.append(value)
                    if len(blobs) > 2:
                        raise InputError(
                            f"{path}: layer {name!r:.60} has more than 2 blobs; weight and bias "
                            "are needed"
                        )
            if blobs:
                yield name, blobs
    except _NoMessage as error:
        raise InputError(f"{path}: no Caffe model, or a truncated one: {error}") from None


class _NoMessage(ValueError):
    """Bytes that are no message."""


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the content of each field that has a length; others are passed over."""
    position, number_of_fields = 0, 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        number_of_fields += 1
        if number == 0 or number_of_fields > _MOST_FIELDS:
            raise _NoMessage("a field 0" if number == 0 else f"more than {_MOST_FIELDS} fields")
        if kind == 0:
            _, position = _varint(message, position)
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _NoMessage(f"a field of type {kind}")
        if length > len(message) - position:
            raise _NoMessage(f"a field of {length} bytes where {len(message) - position} are left")
        if kind == 2:
            yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return an integer in groups of 7 bits, the lowest first, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, position + shift + 1
    raise _NoMessage("a number without an end")


def _fill(layer: nn.Conv2d | nn.ConvTranspose2d, blobs: list[memoryview], where: str) -> None:
    """Put the blobs of a layer, weight and bias, into ours."""
    assert layer.bias is not None
    if len(blobs) != 2:
        raise InputError(f"{where} has {len(blobs)} blob; weight and bias are needed")
    for kind, blob, target in zip(("weight", "bias"), blobs, (layer.weight, layer.bias)):
        values = _values(blob, tuple(target.shape), f"{where}: the {kind}")
        target.copy_(torch.from_numpy(values))


def _values(content: memoryview, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """Return the numbers of a blob, which must have this shape."""
    blob_message, shape_message, error_class = _messages()
    if len(content) > _VALUE_BYTES * prod(shape) + _SPARE_BYTES // 16:
        raise InputError(f"{where} takes {len(content):,} bytes, too many for {_by(shape)} values")
    try:
        blob = blob_message.FromString(bytes(content))
        if len(blob.shape) > _MOST_SHAPE_BYTES:
            raise InputError(f"{where} has a shape of more than {_MOST_SHAPE_BYTES} bytes")
        stated = tuple(shape_message.FromString(blob.shape).dim)
    except error_class:
        raise InputError(f"{where} cannot be read: its blob is damaged") from None
    if not blob.HasField("shape"):
        stated = (blob.num, blob.channels, blob.height, blob.width)
    if _without_ones(stated) != _without_ones(shape):
        raise InputError(f"{where} is {_by(stated)}; the release has {_by(shape)}")
    if blob.data and blob.double_data:
        raise InputError(f"{where} has float and double values; either are needed")
    numbers = blob.data or blob.double_data
    if len(numbers) != prod(shape):
        raise InputError(f"{where} has {len(numbers)} values; {_by(shape)} are needed")
    with np.errstate(over="ignore"):
        values = np.fromiter(numbers, np.float64 if blob.double_data else np.float32, len(numbers))
        single = values.astype(np.float32, copy=False)
    if not np.isfinite(single).all():
        raise InputError(f"{where} holds values that are NaN or infinite, or beyond float32")
    if (single != values).any():
        note("the weights are stored as float64; they are rounded to float32")
    return single.reshape(shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the ones before it: a bias of Caffe's older files is (1, 1, 1, n)."""
    ones = next((i for i, side in enumerate(shape) if side != 1), len(shape))
    return shape[ones:]


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "nothing"


@functools.cache
def _messages() -> tuple[Any, Any, type[Exception]]:
    """Return the classes of BlobProto and BlobShape, and of what they raise.

    Of Caffe's definition the fields that hold weights; others are passed over. ``shape`` is
    declared as bytes, which are looked at before they are taken for a list of any length.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
        from google.protobuf.message import DecodeError
    except ImportError:
        raise InputError(
            "import-caffe needs the package protobuf: pip install 'unet_repro[caffe]'"
        ) from None
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="unet_repro/caffe_blob.proto", package="unet_repro.caffe", syntax="proto2"
    )
    for message, fields in {
        "BlobProto": {
            "num": (1, field.TYPE_INT32),
            "channels": (2, field.TYPE_INT32),
            "height": (3, field.TYPE_INT32),
            "width": (4, field.TYPE_INT32),
            "data": (5, field.TYPE_FLOAT),
            "shape": (7, field.TYPE_BYTES),
            "double_data": (8, field.TYPE_DOUBLE),
        },
        "BlobShape": {"dim": (1, field.TYPE_INT64)},
    }.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            is_list = name in ("data", "double_data", "dim")  # packed or not: both are understood
            label = field.LABEL_REPEATED if is_list else field.LABEL_OPTIONAL
            declared.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    blob, shape = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"unet_repro.caffe.{name}"))
        for name in ("BlobProto", "BlobShape")
    )
    return blob, shape, DecodeError
