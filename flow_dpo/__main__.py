"""`python -m flow_dpo` is the command line."""

import sys

from flow_dpo.cli.main import main

sys.exit(main())
