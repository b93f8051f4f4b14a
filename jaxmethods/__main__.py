"""`python -m jaxmethods`: the command; the work is in `tour` and `audit`."""

import sys

from .tour.command import main

if __name__ == "__main__":
    sys.exit(main())
