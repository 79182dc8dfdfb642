"""`python -m shardctl`."""

import sys

from shardctl.cli import main

sys.exit(main())
