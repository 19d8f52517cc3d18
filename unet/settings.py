"""Typed settings from flags and environment variables, and user mistakes in one line.

Imported by the programs only, so that `from unet import Predictor` needs no pydantic.
"""

import argparse
import os
import re
import sys
from collections.abc import Set
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import unet


class ProgramSettings(BaseSettings):
    """Settings of one program: each field is a flag, `--like-this`, and an environment variable, `PREFIX_LIKE_THIS`.

    The flag wins. A subclass sets `cli_prog_name` and `env_prefix` in its `model_config`; its docstring is the text of
    `--help`. `json_schema_extra={"metavar": "FILE"}` on a field names its value there. A list without a default is what
    the command line names without a flag; that of other lists may be given several times.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True)


def _split(value: object) -> object:
    """`a, b` -> ["a", "b"]."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


S = TypeVar("S", bound=ProgramSettings)
T = TypeVar("T")
CommaSeparated = Annotated[list[T], NoDecode, BeforeValidator(_split)]


def parse(settings: type[S], argv: list[str] | None = None) -> S:
    """Settings from the command line and the environment. A mistake in them ends the program with status 2."""
    config = settings.model_config
    program, prefix = config.get("cli_prog_name") or "", config.get("env_prefix") or ""
    given = vars(_parser(settings, program).parse_intermixed_args(argv))
    links = _service_links()
    _warn_of_unknown_variables(settings, program, prefix, links)
    for name, field in settings.model_fields.items():
        if name not in given and (variable := _variable(prefix, name)) in links:
            given[name] = field.default
            told = f"{variable}={os.environ[variable]} is a link that Kubernetes makes to a Service: ignored"
            print(f"{program}: warning: {told} (enableServiceLinks: false makes none)", file=sys.stderr)
    try:
        return settings(**given)
    except ValidationError as error:
        secret = {name for name, field in settings.model_fields.items() if not field.repr}
        problems = [_explain(settings, e, secret) for e in error.errors()]
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


class _Each(_Once):
    """Stores a flag's values, separated by commas as they are in a variable; each may be given by a flag of its own."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, flag: str | None = None
    ) -> None:
        before = vars(namespace).pop(self.dest, None)
        super().__call__(parser, namespace, value, flag)
        if before:
            setattr(namespace, self.dest, f"{before},{value}")


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
        flag, text = _flag(name), (field.description or "").replace("%", "%%")
        several = get_origin(field.annotation) is list
        if several and field.is_required():
            parser.add_argument(name, nargs="*", metavar=_metavar(field), help=text)
            continue
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
            continue
        default = ",".join(field.default) if isinstance(field.default, list) else field.default
        text += f" (default: {default})" if default not in (None, "") else ""
        parser.add_argument(flag, dest=name, action=_Each if several else _Once, metavar=_metavar(field), help=text)
    return parser


def _flag(name: str) -> str:
    """`--like-this`; a field named after a word of Python ends with an underscore: `class_`."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def _variable(prefix: str, name: str) -> str:
    return f"{prefix}{name.rstrip('_').upper()}"


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


def _service_links() -> set[str]:
    """Variables that Kubernetes makes for Services: for `service` these are SERVICE_PORT=tcp://10.0.0.1:80,
    SERVICE_PORT_80_TCP_ADDR, SERVICE_SERVICE_HOST and others."""
    ports = [name for name, value in os.environ.items() if re.match(r"(tcp|udp|sctp)://", value)]
    services = tuple(name.removesuffix("_PORT") for name in ports if name.endswith("_PORT"))
    parts = (r"_PORT(_\d+_\w+)?", "_SERVICE_HOST", r"_SERVICE_PORT(_\w+)?")
    links = re.compile(f"({'|'.join(map(re.escape, services))})({'|'.join(parts)})")
    return {name for name in os.environ if services and links.fullmatch(name)}


def _warn_of_unknown_variables(settings: type[ProgramSettings], program: str, prefix: str, links: Set[str]) -> None:
    """Names environment variables that look like settings and are none, such as a misspelt one."""
    known = {_variable(prefix, name) for name in settings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(prefix) and name.upper() not in known and name not in links:
            close = get_close_matches(name.upper(), known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            print(f"{program}: warning: {name} is no setting of {program}{hint}", file=sys.stderr)


def _explain(settings: type[ProgramSettings], error: Any, secret: Set[str]) -> str:
    """A problem found by pydantic, with the flag and the variable that change it; secrets are not shown."""
    if not error["loc"]:  # of several settings together
        return plain(error["msg"])
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"expected {_metavar(settings.model_fields[name])}, found none"
    found = "" if name in secret else f", found {error['input']!r}"
    variable = _variable(settings.model_config.get("env_prefix") or "", name)
    return " ".join(f"{_flag(name)} (or {variable}): {plain(error['msg'])}{found}".split())


def plain(message: str) -> str:
    """A message of pydantic as part of a sentence, without its prefix for our own validators."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
