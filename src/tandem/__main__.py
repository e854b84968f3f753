"""`tandem` and `python -m tandem`: the way in, quiet when interrupted while the libraries still load."""

import gc
import sys


def main() -> None:
    """Entry point of the command line."""
    gc.set_threshold(10_000)  # the libraries make a million objects that stay; looking at them takes seconds
    try:
        from tandem.cli.usage import answer
        from tandem.shown import tolerate_any_encoding

        tolerate_any_encoding()
        text = answer(sys.argv[1:])
        code = 0 if text is not None and _printed(text) else _run()
    except KeyboardInterrupt:
        sys.stderr.write("tandem: interrupted\n")
        code = 130
    gc.freeze()  # or the exit would look at them once more
    sys.exit(code)


def _printed(text: str) -> bool:
    """Whether it could be written; if not, the command line says why."""
    try:
        print(text, flush=True)
    except OSError:
        return False
    return True


def _run() -> int:
    from tandem.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    main()
