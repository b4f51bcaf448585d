"""`python -m neurodeploy`, and what the `neurodeploy` command calls."""

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Load the command line and run it; Ctrl-C while it loads is no traceback."""
    try:
        from neurodeploy.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("neurodeploy: stopped\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
