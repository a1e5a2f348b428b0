"""The default teacher, as ``params.yaml`` names it. Its code is in ``pipeline/examples/digits.py``.

``python -m examples.digits OUT`` trains it and writes its weights and its held-out images.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.examples.digits import classifier, main

__all__ = ["classifier", "main"]

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
