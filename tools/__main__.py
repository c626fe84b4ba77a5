"""`python -m tools`: the command line."""

if __name__ == "__main__":
    from tools.cli import main  # not at the top: processes that read images import this file too

    main()
