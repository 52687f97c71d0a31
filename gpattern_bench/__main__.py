"""``python -m gpattern_bench``."""

from gpattern_bench.cli import main

if __name__ == "__main__":
    main()
