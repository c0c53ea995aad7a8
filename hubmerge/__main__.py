"""`python -m hubmerge` is `hubmerge`."""

from hubmerge.cli import main

if __name__ == "__main__":
    main()
