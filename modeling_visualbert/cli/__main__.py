"""`python -m modeling_visualbert.cli`, the same as `visualbert`."""

import sys

from . import main

sys.exit(main())
