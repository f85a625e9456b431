"""`python -m minigemm`."""

from .cli import main

raise SystemExit(main())
