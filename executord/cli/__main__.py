"""`python -m executord.cli` is `executorctl`."""

from executord.cli.main import main

main()
