"""Ctrl-C while the program loads its libraries: it ends at once and without a traceback.

The package imports this first. It does nothing in programs of others; the project's scripts, which
import more than the package, say the same for themselves. `cli.program` begins to listen again.
"""

import os
import signal
import sys

_IS_OURS = os.path.basename("".join(sys.argv[:1])) in ("-m", "unet-repro")  # python -m unet_repro

if _IS_OURS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
