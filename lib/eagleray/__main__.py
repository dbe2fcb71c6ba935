"""Runs the `eagleray` command as `python -m eagleray`, where its script is not on the path."""

from eagleray.cli.launch import main

if __name__ == "__main__":
    main()
