"""Find or download the data of DIC-C2DH-HeLa and print what they hold; see ../README.md."""

import sys

from unet_repro.prepare import main

if __name__ == "__main__":
    sys.exit(main("dic-hela"))
