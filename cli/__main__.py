"""`python -m hivemind.cli` is the `hivemind` command."""

from hivemind.cli import main

main()
