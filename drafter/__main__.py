"""`python -m drafter` is `specfleet drafter`."""

import sys

from specfleet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["drafter", *sys.argv[1:]]))
