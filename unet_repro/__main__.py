"""``python -m unet_repro``, and the program ``unet-repro``."""

import signal
import sys


def main() -> int:
    """Run the command line; from its end on, a signal ends the process without more words."""
    try:
        from unet_repro import cli

        return cli.main()
    except KeyboardInterrupt:  # while the libraries are loaded
        print("error: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
