"""``python -m unet_repro``, and the program ``unet-repro``."""


def main() -> None:
    """Run the command line and end the process."""
    from unet_repro.cli import main as run_command
    from unet_repro.program import program

    program(run_command)


if __name__ == "__main__":
    main()
