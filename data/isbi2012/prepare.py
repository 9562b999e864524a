"""Find or download the data of the EM challenge and print what they hold; see ../README.md."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback

from unet_repro.cli import program
from unet_repro.prepare import main

if __name__ == "__main__":
    program(lambda: main("isbi2012"))
