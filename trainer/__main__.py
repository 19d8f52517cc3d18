"""`unet-train`, or `python -m trainer`."""

import signal
import sys
from types import FrameType

from trainer.settings import TrainSettings
from unet.settings import parse

STOPPED = "stopped; the same command goes on after the last finished epoch"


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, no `except Exception` may hold it up."""


def main(argv: list[str] | None = None) -> int:
    settings = parse(TrainSettings, argv)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        from trainer.run import run
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; expected the extra: pip install 'unet-service[train]'")
    try:
        run(settings)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail(STOPPED, status=130)
    except Terminated:
        return _fail(STOPPED, status=143)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _fail(message: str, status: int = 2) -> int:
    print(f"unet-train: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
