"""Find or download the data of the EM challenge and print what they hold; see ../README.md."""

from unet_repro.cli import program
from unet_repro.prepare import main

if __name__ == "__main__":
    program(lambda: main("isbi2012"))
