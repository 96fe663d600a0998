"""Runs `python -m compress.report`."""

import sys

from compress.launch.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
