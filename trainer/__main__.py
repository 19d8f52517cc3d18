"""`unet-train`, or `python -m trainer`. Exit status: 0; 2 for what the user can mend; 143 after SIGTERM, 130 after
SIGINT (see `trainer.stop`)."""

import sys

from trainer.stop import Stop, Stopped


def main(argv: list[str] | None = None) -> int:
    stop = Stop()
    try:
        with stop.listen():  # before the imports, which take seconds
            _train(argv, stop)
    except (Exception, Stopped) as error:
        if stop.signal:  # whatever a library, or another process of this run that is gone already, made of it
            print(f"unet-train: {stop}", file=sys.stderr)
            return 128 + stop.signal
        if isinstance(error, ModuleNotFoundError) and error.name == "fcntl":
            return _fail("expected Linux or macOS; on Windows: WSL or Docker")
        if isinstance(error, ModuleNotFoundError):
            return _fail(f"{error.name} is not installed; expected the extra: pip install '.[train]', in the clone")
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}")
        if isinstance(error, ValueError | OSError):
            return _fail(str(error))
        raise
    return 0


def _train(argv: list[str] | None, stop: Stop) -> None:
    from trainer.settings import TrainSettings
    from unet.settings import parse

    settings = parse(TrainSettings, argv)
    from trainer.run import run

    run(settings, stop)


def _fail(message: str) -> int:
    print(f"unet-train: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
