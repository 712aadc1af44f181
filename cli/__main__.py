"""`python -m mailboat.cli`: the same as the console script, for where its folder is not on PATH."""

from mailboat.cli import main

main()
