"""``python -m logd`` and the ``logd`` command.

Nothing is imported here but the command table: ``logd --help`` should feel instant, so a
command's module, and the libraries it needs, load when that command runs.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from logd.cli import root

    root(prog_name="logd")


if __name__ == "__main__":
    main()
