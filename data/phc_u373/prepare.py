"""Find or download the data of PhC-C2DH-U373 and print what they hold; see ../README.md."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback

from unet_repro.challenges.prepare import main
from unet_repro.program import program

if __name__ == "__main__":
    program(lambda: main("phc-u373"))
