"""``python -m open_bench`` is the command ``openbench``."""

from open_bench.cli.main import main

if __name__ == "__main__":
    main()
