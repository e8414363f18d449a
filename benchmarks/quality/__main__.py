"""`python -m benchmarks.quality`; the stages are in run.py, where other processes find them by name."""

from benchmarks.quality.run import main

if __name__ == "__main__":
    main()
