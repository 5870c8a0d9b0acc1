"""`python cli.py ...` is `accelaes-export ...`."""

from __future__ import annotations

from accelaes_export.cli import main

if __name__ == "__main__":
    main()
