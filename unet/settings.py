"""What the command lines of the programs have in common: typed settings from flags and environment, errors in one line.

Imported by `trainer` and `service` only, so that `from unet import Predictor` needs no pydantic.
"""

import sys
from collections.abc import Set
from typing import NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError


class ProgramSettings(BaseSettings):
    """A program's settings. Each field is a flag, `--like-this`, and an environment variable, `PREFIX_LIKE_THIS`; the
    flag wins."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="not set",  # --help shows it as a default; a name that nobody gives
        cli_exit_on_error=False,
        env_ignore_empty=True,
    )


S = TypeVar("S", bound=ProgramSettings)


def parse(settings: type[S], argv: list[str] | None = None) -> S:
    """Settings from the command line and the environment; anything wrong with them ends the program."""
    given = sys.argv[1:] if argv is None else argv
    for flag, value in zip(["", *given], given, strict=False):
        if not value or (value.startswith("--") and value.endswith("=")):  # a shell's variable that is not set
            fail(settings, f"{value[:-1] or flag}: expected a value, found an empty one")
    try:
        return CliApp.run(settings, cli_args=given)
    except SettingsError as error:
        fail(settings, str(error).removeprefix("error parsing CLI: "))
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        secret = {name for name, field in settings.model_fields.items() if not field.repr}
        fail(settings, "; ".join(_explain(prefix, e["loc"], e["msg"], e["input"], secret) for e in error.errors()))


def fail(settings: type[ProgramSettings], message: str) -> NoReturn:
    """A user's mistake: one line, exit status 2."""
    program = settings.model_config.get("cli_prog_name")
    print(f"{program}: error: {' '.join(message.split())} (see {program} --help)", file=sys.stderr)
    raise SystemExit(2)


def _explain(prefix: str, location: tuple[int | str, ...], message: str, value: object, secret: Set[str]) -> str:
    name = str(location[0]) if location else "settings"
    message = message.removeprefix("Value error, ")  # ours, which pydantic says before
    message = message[:1].lower() + message[1:]
    return f"--{name.replace('_', '-')} (or {prefix}{name.upper()}): {message}" + (
        "" if name in secret else f", found {value!r}"
    )
