"""`python -m verifier` is `specfleet verifier`."""

import sys

from specfleet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["verifier", *sys.argv[1:]]))
