"""``python -m wellposed.cli``: the same as ``wellposed``."""

from wellposed.cli.app import main

main()
