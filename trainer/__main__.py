"""`unet-train`, or `python -m trainer`."""

import sys

from trainer.settings import TrainSettings
from unet.settings import parse


def main(argv: list[str] | None = None) -> int:
    settings = parse(TrainSettings, argv)
    try:
        from trainer.run import run  # torch takes seconds to import, --help and a wrong flag do not need it
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; expected the extra: pip install 'unet-service[train]'")
    try:
        run(settings)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on after the last finished epoch", status=130)
    return 0


def _fail(message: str, status: int = 2) -> int:
    print(f"unet-train: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
