"""Typed settings from flags and environment variables, and user mistakes in one line.

Imported by the programs only, so that `from unet import Predictor` needs no pydantic.
"""

import argparse
import os
import sys
from collections.abc import Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

import unet


class ProgramSettings(BaseSettings):
    """Settings of one program: each field is a flag, `--like-this`, and an environment variable, `PREFIX_LIKE_THIS`.

    The flag wins. A subclass sets `cli_prog_name` and `env_prefix` in its `model_config`; its docstring is the text of
    `--help`. `json_schema_extra={"metavar": "FILE"}` on a field names its value there.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True)


S = TypeVar("S", bound=ProgramSettings)


def parse(settings: type[S], argv: list[str] | None = None) -> S:
    """Settings from the command line and the environment. A mistake in them ends the program with status 2."""
    config = settings.model_config
    program, prefix = config.get("cli_prog_name") or "", config.get("env_prefix") or ""
    given = vars(_parser(settings, program).parse_args(argv))
    _warn_of_unknown_variables(settings, program, prefix)
    try:
        return settings(**given)
    except ValidationError as error:
        secret = {name for name, field in settings.model_fields.items() if not field.repr}
        problems = [_explain(prefix, e["loc"], e["msg"], e["input"], secret) for e in error.errors()]
        fail(program, f"{'; '.join(problems)} (see {program} --help)")


def fail(program: str, message: str) -> NoReturn:
    """Prints a user's mistake as one line on stderr and exits with status 2."""
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(self.prog, f"{message} (see {self.prog} --help)")


class _Once(argparse.Action):
    """Stores a flag's value; the same flag a second time, or without a value, is an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, flag: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{flag}: expected once, found twice: {getattr(namespace, self.dest)} and {value}")
        if not value:  # a shell variable that is not set
            parser.error(f"{flag}: expected a value, found an empty one")
        setattr(namespace, self.dest, value)


def _parser(settings: type[ProgramSettings], program: str) -> _Parser:
    """Argument parser that leaves validation to pydantic: values stay strings, missing flags are left out."""
    parser = _Parser(
        prog=program,
        description=" ".join((settings.__doc__ or "").split()),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{program} {unet.__version__}")
    for name, field in settings.model_fields.items():
        flag, text = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
            continue
        default = ",".join(field.default) if isinstance(field.default, list) else field.default
        text += f" (default: {default})" if default not in (None, "") else ""
        parser.add_argument(flag, dest=name, action=_Once, metavar=_metavar(field), help=text)
    return parser


def _metavar(field: FieldInfo) -> str:
    """The word for a flag's value in `--help`: FILE, N, {a,b}."""
    if isinstance(field.json_schema_extra, dict) and "metavar" in field.json_schema_extra:
        return str(field.json_schema_extra["metavar"])
    kind, *others = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is Literal:
        return f"{{{','.join(map(str, [kind, *others]))}}}"
    if get_origin(field.annotation) is list:
        return "A,B"
    return {int: "N", float: "N", Path: "FILE"}.get(kind, "TEXT")


def _warn_of_unknown_variables(settings: type[ProgramSettings], program: str, prefix: str) -> None:
    """Names environment variables that look like settings and are none, such as a misspelt one."""
    known = {f"{prefix}{name.upper()}" for name in settings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(prefix) and name.upper() not in known:
            close = get_close_matches(name.upper(), known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            print(f"{program}: warning: {name} is no setting of {program}{hint}", file=sys.stderr)


def _explain(prefix: str, location: tuple[int | str, ...], message: str, value: object, secret: Set[str]) -> str:
    """A problem found by pydantic, with the flag and the variable that change it; secrets are not shown."""
    name = str(location[0]) if location else "settings"
    found = "" if name in secret else f", found {value!r}"
    return " ".join(f"--{name.replace('_', '-')} (or {prefix}{name.upper()}): {plain(message)}{found}".split())


def plain(message: str) -> str:
    """A message of pydantic as part of a sentence, without its prefix for our own validators."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
