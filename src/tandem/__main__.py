"""`tandem` and `python -m tandem`: the way in, quiet when interrupted while the libraries still load."""

import gc
import sys
from contextlib import suppress


def main() -> None:
    """Entry point of the command line."""
    gc.set_threshold(10_000)  # the libraries make a million objects that stay; looking at them takes seconds
    try:
        from tandem.cli.usage import answer
        from tandem.shown import tolerate_any_encoding

        tolerate_any_encoding()
        code = -1
        with suppress(OSError):  # the command line says what is wrong
            if (text := answer(sys.argv[1:])) is not None:
                print(text, flush=True)
                code = 0
        if code < 0:
            from tandem.cli.main import run

            code = run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("tandem: interrupted\n")
        code = 130
    gc.freeze()  # or the exit would look at them once more
    sys.exit(code)


if __name__ == "__main__":
    main()
