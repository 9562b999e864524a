"""Find or download the data of PhC-C2DH-U373 and print what they hold; see ../README.md."""

import sys

from unet_repro.prepare import main

if __name__ == "__main__":
    sys.exit(main("phc-u373"))
