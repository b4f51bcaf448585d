"""One measurement in a process of its own: JSON in, a marked line of JSON out."""

from __future__ import annotations

import json
import sys

from neurodeploy_runtime._errors import NeurodeployError
from neurodeploy_runtime.measure._compare import MARK, measure_one

if __name__ == "__main__":
    try:
        found = measure_one(json.load(sys.stdin))
    except NeurodeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(MARK + json.dumps(found), flush=True)
