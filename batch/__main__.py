"""`unet-segment`, or `python -m batch`.

Exit status: 0; 1 if images failed; 2 for a mistake that the user can mend; 130 after Ctrl-C, 143 after SIGTERM.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unet.errors import UserError


def main(argv: list[str] | None = None) -> int:
    from batch.settings import SegmentSettings
    from unet.settings import parse

    settings, received = parse(SegmentSettings, argv), list[int]()
    try:
        with _signals(received):
            from batch.run import run

            return run(settings)
    except KeyboardInterrupt:
        number = signal.Signals(received[0])
        print(f"unet-segment: stopped by {number.name}; the same command goes on", file=sys.stderr)
        return 128 + number
    except Exception as error:
        if message := _explain(error):
            print(f"unet-segment: error: {message}", file=sys.stderr)
            return 2
        raise


@contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """In this block SIGTERM raises KeyboardInterrupt, too, with its number, which is also put into `received`, as Ray
    raises one of its own; a second signal ends the program at once. Signals that the parent process ignores stay
    ignored."""
    handled = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) is not signal.SIG_IGN]

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in handled:  # whatever is open then: every file is whole
            signal.signal(each, lambda number, _: os._exit(128 + number))
        received.append(number)
        raise KeyboardInterrupt(number)

    before = {each: signal.signal(each, stop) for each in handled}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _explain(error: Exception) -> str | None:
    """One line about a mistake that the user can mend; None for a bug, which keeps its traceback."""
    match error:
        case UserError():
            return str(error)
        case ModuleNotFoundError(name="fcntl"):
            return "expected Linux or macOS; on Windows: WSL or Docker"
        case ModuleNotFoundError() if not str(error.name).startswith(("batch", "unet")):
            extra = "segment" if error.name in ("tqdm", "httpx") else "segment,cluster"
            return f"{error.name} is not installed; expected the extra: pip install '.[{extra}]', in the clone"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"{error.filename or '--out'}: {error.strerror}"
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
