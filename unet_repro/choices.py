"""Words that options take, by which settings, flags and functions name the same things.

They need no library, so that flags and their help are there at once.
"""

from typing import Literal

Average = Literal["none", "rotations", "dihedral", "seven", "flips"]
Backend = Literal["torch", "compile", "openvino"]
Compression = Literal["zlib", "zstd", "lzw", "none"]
Kind = Literal["probability", "uint8", "labels", "mask", "logits", "instances"]
LabelKind = Literal["auto", "mask", "ids", "classes"]
Ngff = Literal["0.5", "0.4"]
Precision = Literal["float32", "bfloat16"]
Task = Literal["em", "cells", "classes"]
Variant = Literal["paper", "short", "falk2019"]
