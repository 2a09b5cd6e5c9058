"""`python -m limbeck` is the command `limbeck`."""

from limbeck.cli import main

main()
