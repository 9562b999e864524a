"""Small inputs of every command, and the warm process that runs them."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import threading
import time
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fault_inputs import NAMES, Inputs
from warm_server import Server

from unet_repro.challenges.phantom import em_phantom
from unet_repro.config import UNetConfig
from unet_repro.images.stacks import write_stack
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    images, labels = em_phantom(slices=3, height=128, width=128)
    write_stack(folder / "images.tif", images)
    write_stack(folder / "labels.tif", labels)
    noise = np.random.default_rng(0).uniform(0, 0.4, labels.shape)
    write_stack(
        folder / "probability.tif", np.where(labels > 0, 1 - noise, noise).astype(np.float32)
    )
    for z, image in enumerate(images):
        write_stack(folder / f"slices/{z}.tif", image)
        write_stack(folder / f"label_slices/{z}.tif", labels[z])
    generator = torch.Generator().manual_seed(0)
    network = UNet(UNetConfig(depth=2, base_channels=2, input_std=(50.0,)), generator=generator)
    save_model(network, folder / "m.safetensors")
    stacks = {"train-volume.tif": images, "train-labels.tif": labels, "test-volume.tif": images}
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for name, stack in stacks.items():
            write_stack(folder / name, stack)
            archive.write(folder / name, f"set/{name}")
    return Inputs(folder)


@pytest.fixture(scope="session")
def published(inputs: Inputs) -> Iterator[str]:
    """Publish set.zip on the loopback address, slowly; return the prelude that tells where."""
    content = (inputs / "set.zip").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            start = int(wanted[len("bytes=") : -1]) if wanted else 0
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = io.BytesIO(content[start:])
            try:
                while chunk := rest.read(len(content) // 16):
                    self.wfile.write(chunk)
                    time.sleep(0.01)
            except ConnectionError:  # the program was killed
                pass

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield (
            "import os; os.environ.pop('UNET_REPRO_DATA', None); os.environ['no_proxy'] = '*'\n"
            "from unet_repro.challenges import download\n"
            "download._CHUNK_BYTES = 10_000\n"
            "download.DATASETS['isbi2012'] = download.Dataset("
            f"url='http://127.0.0.1:{running.server_port}/set.zip', terms='free', "
            f"required={NAMES!r}, sha256={hashlib.sha256(content).hexdigest()!r})"
        )
        running.shutdown()
        thread.join()
