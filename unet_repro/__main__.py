"""``python -m unet_repro``, and the program ``unet-repro``."""


def main() -> None:
    """Run the command line and end the process."""
    from unet_repro import cli

    cli.program(cli.main)


if __name__ == "__main__":
    main()
