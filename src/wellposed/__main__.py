"""``python -m wellposed``: the same as ``wellposed``; what ``torchrun -m`` starts."""

from wellposed.cli import main

main()
