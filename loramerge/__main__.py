"""`python -m loramerge`."""

from loramerge.cli import main

if __name__ == "__main__":  # who only looks at the package imports this too
    main()
