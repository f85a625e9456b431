"""`python -m minigemm.labs grade FOLDER`."""

from .commands import main

if __name__ == "__main__":  # the processes that grade import this module under another name
    raise SystemExit(main())
