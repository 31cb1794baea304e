"""`python -m xetserve` is the console script `xetserve`."""

import sys

from xetserve.cli import main

sys.exit(main())
