"""Runs the command line: `python -m compress`."""

import sys

from compress.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
