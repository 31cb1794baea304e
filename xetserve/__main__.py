"""Run the console script `xetserve` as `python -m xetserve`."""

import sys

from xetserve.cli import main

sys.exit(main())
