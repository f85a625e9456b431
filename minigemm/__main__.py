"""`python -m minigemm`."""

from .cli import main

if __name__ == "__main__":  # the processes that grade labs import this module under another name
    raise SystemExit(main())
