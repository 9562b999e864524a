"""Find or download the data of the EM challenge and print what they hold; see ../README.md."""

import sys

from unet_repro.prepare import main

if __name__ == "__main__":
    sys.exit(main("isbi2012"))
