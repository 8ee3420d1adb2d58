"""`python -m ztok_rag.cli` is the `ztok` command."""

from ztok_rag.cli import main

if __name__ == "__main__":
    main()
