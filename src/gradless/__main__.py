"""``python -m gradless``."""

from gradless.cli import main

if __name__ == "__main__":
    main()
