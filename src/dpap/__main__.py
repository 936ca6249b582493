"""`python -m dpap` is the command line `dpap`."""

from dpap.cli import main

if __name__ == "__main__":
    main()
