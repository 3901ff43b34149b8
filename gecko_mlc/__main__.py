"""``python -m gecko_mlc``."""

import sys

from gecko_mlc.cli import main

if __name__ == "__main__":
    sys.exit(main())
