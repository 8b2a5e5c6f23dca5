"""``python -m logd`` and the ``logd`` command.

Nothing is imported here but the command table: ``logd --help`` should feel instant, so a
command's module, and the libraries it needs, load when that command runs.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from logd.cli import root
        from logd.cli.streams import escape_unencodable, fill_missing

        fill_missing()
        escape_unencodable()
    except KeyboardInterrupt:
        # Later ones are told from ``logd.cli.lazy``, which is being imported.
        raise SystemExit(130) from None
    root(prog_name="logd")


if __name__ == "__main__":
    main()
