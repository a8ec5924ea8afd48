"""``python -m fastloss``: the configuration, or with arguments the command line of `fastloss.cli`.

The configuration and ``--version`` always work; everything else needs the extra ``cli``.
"""

import sys

from fastloss import __version__, show_config


def main() -> None:
    """Print the configuration, or hand over to the command line."""
    if len(sys.argv) == 1:
        show_config()
        return
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    try:
        from fastloss.cli import main as cli_main
    except ImportError as error:
        if sys.stderr is not None:
            print(f"fastloss: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    cli_main()


if __name__ == "__main__":
    main()
