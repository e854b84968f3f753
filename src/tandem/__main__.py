"""`tandem` and `python -m tandem`: the way in, quiet when interrupted while the libraries still load."""

import sys


def main() -> None:
    """Entry point of the command line."""
    try:
        from tandem.shown import tolerate_any_encoding

        tolerate_any_encoding()
        from tandem.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("tandem: interrupted\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
