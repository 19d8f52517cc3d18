"""`unet-train`, or `python -m trainer`.

Exit status: 0; 2 for a mistake that the user can mend; 143 after SIGTERM, 130 after SIGINT (see `trainer.stop`).
"""

import sys

from trainer.stop import Stop, Stopped
from unet.errors import UserError


def main(argv: list[str] | None = None) -> int:
    stop = Stop()
    try:
        with stop.listen():  # before the imports, which take seconds
            from trainer.settings import TrainSettings
            from unet.settings import parse

            settings = parse(TrainSettings, argv)
            from trainer.run import run

            run(settings, stop)
    except (Exception, Stopped) as error:
        if stop.signal:  # also where a library, or the end of another process, turned it into another exception
            print(f"unet-train: {stop}", file=sys.stderr)
            return 128 + stop.signal
        if message := _explain(error):
            print(f"unet-train: error: {message}", file=sys.stderr)
            return 2
        raise
    return 0


def _explain(error: BaseException) -> str | None:
    """One line about a mistake that the user can mend; None for a bug, which keeps its traceback."""
    match error:
        case UserError():
            return str(error)
        case ModuleNotFoundError(name="fcntl"):
            return "expected Linux or macOS; on Windows: WSL or Docker"
        case ModuleNotFoundError() if not str(error.name).startswith(("trainer", "unet")):
            extra = "train,cluster" if error.name == "ray" else "train"
            return f"{error.name} is not installed; expected the extra: pip install '.[{extra}]', in the clone"
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
