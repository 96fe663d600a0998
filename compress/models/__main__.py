"""`python -m compress.models`."""

import sys

from compress.launch.commands.models import main

if __name__ == "__main__":
    sys.exit(main())
