import sys

from unet_repro.cli import main

sys.exit(main())
