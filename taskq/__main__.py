"""`python -m taskq`."""

from taskq.cli import main

if __name__ == "__main__":
    main()
