"""`python -m neurodeploy`, and what the `neurodeploy` command calls."""

import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Load the command line and run it; Ctrl-C while it loads is no traceback."""
    try:
        from neurodeploy.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("neurodeploy: stopped\n")
        sys.exit(130)
    try:
        main()
    finally:
        # What was asked for is done or refused: from here on Ctrl-C ends the process
        # without a word, instead of an exception in whatever is being torn down.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
