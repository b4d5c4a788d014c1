"""Make the example image, the OCI layout ``etc/example``, from the files in ``etc/site``.

Run in the checkout as ``python -m etc.make_example``. The same files give the same image.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.parts.images import Image, files_below, write_layout

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Replace the layout by one of the files as they are now."""
    shutil.rmtree(HERE / "example", ignore_errors=True)
    write_layout(HERE / "example", {"v1": Image.of(files_below(HERE / "site"))})


if __name__ == "__main__":
    main()
