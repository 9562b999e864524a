"""The EM challenge (Sec. 4, Table 1), end to end: data, training, prediction, figures, report.

Claim: on two CPU cores, ten minutes of training on slices 0-24 of the ISBI 2012 training volume
reach the paper's own level on the held-out slices 25-29 (RESULTS.md has the measured figures).

    bash experiments/em_challenge.sh [--time-budget 10m] [--val 25:30] [--data phantom]
    bash experiments/em_challenge.sh --folds 6 --out results/em_crossvalidation
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback

from unet_repro.challenges.em_job import main
from unet_repro.program import program

if __name__ == "__main__":
    program(main)
