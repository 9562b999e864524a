"""Predictions from and into a bucket (moto, on this machine), with a kill in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray
from unet_repro.files.places import place_at
from unet_repro.images.stacks import read_stack, write_stack
from unet_repro.network.model import UNet
from unet_repro.prediction.predict_stack import predict_stack
from unet_repro.weight_maps.stack import write_weight_map

pytest.importorskip("obstore")
OPTIONS: dict[str, Any] = {"shard": 64, "tile": 76}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
    ):
        monkeypatch.setenv(name, value)
    import urllib.request

    name = f"bucket{port}"  # stores are opened once in a process
    urllib.request.urlopen(
        urllib.request.Request(f"http://{host}:{port}/{name}", method="PUT")
    ).close()
    yield f"s3://{name}"
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_bucket_in_and_out_with_a_kill(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = UNet(
        UNetConfig(depth=2, base_channels=4), generator=torch.Generator().manual_seed(0)
    ).eval()
    pixels = np.random.default_rng(1).integers(0, 256, (1, 90, 110)).astype(np.uint8)
    write_stack(tmp_path / "s.tif", pixels)
    here = predict_stack(tmp_path / "s.tif", model, tmp_path / "o.zarr", **OPTIONS)
    out, write, written = f"{bucket}/a/o.zarr", BlockArray.write, []

    def killing(array: BlockArray, number: int, values: np.ndarray) -> None:
        written.append(number)
        write(array, number, values)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlockArray, "write", killing)
        with pytest.raises(KeyboardInterrupt):
            predict_stack(tmp_path / "s.tif", model, out, **OPTIONS)
    with pytest.raises(InputError, match=r"s3://.*/a/o\.zarr: is an unfinished prediction"):
        read_stack(out)
    with pytest.raises(InputError, match="an unfinished run of it is there"):
        predict_stack(tmp_path / "s.tif", model, out, **OPTIONS)
    predict_stack(tmp_path / "s.tif", model, out, resume=True, **OPTIONS)
    there = {key: place_at(out).read(key) for key in place_at(out).keys()}
    assert there == {
        str(file.relative_to(here)): file.read_bytes() for file in here.rglob("*") if file.is_file()
    }
    from_bucket = predict_stack(out, model, tmp_path / "b.tif", **OPTIONS)
    from_disc = predict_stack(here, model, tmp_path / "c.tif", **OPTIONS)
    np.testing.assert_array_equal(read_stack(from_bucket), read_stack(from_disc))
    with pytest.raises(InputError, match="neither a zarr array nor a group is there"):
        read_stack(f"{bucket}/nothing.zarr")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::unet_repro.errors.InputNote")
def test_what_is_read_from_a_bucket_is_not_overwritten(bucket: str, tmp_path: Path) -> None:
    labels = np.kron(np.eye(2, dtype=np.uint8), np.ones((20, 20), np.uint8))[None]
    write_stack(tmp_path / "l.tif", labels)
    write_weight_map(tmp_path / "l.tif", f"{bucket}/w.zarr", class_balance="none")
    place = place_at(f"{bucket}/w.zarr")
    before = {key: place.read(key) for key in place.keys()}
    model = UNet(UNetConfig(depth=2, base_channels=4)).eval()
    for source in (f"{bucket}/w.zarr", f"{bucket}/w.zarr/0"):
        with pytest.raises(InputError, match="among the files"):
            write_weight_map(source, f"{bucket}/w.zarr", label_kind="mask", overwrite=True)
        with pytest.raises(InputError, match="among the files"):
            predict_stack(source, model, f"{bucket}/w.zarr", overwrite=True, **OPTIONS)
    assert before and {key: place.read(key) for key in place.keys()} == before
