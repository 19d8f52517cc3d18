"""Settings of the programs: flags, environment variables, and one clear line for a mistake."""

import re
import subprocess
import sys

import pytest

import unet
from batch.settings import SegmentSettings
from service.settings import ServeSettings
from trainer.settings import TrainSettings
from unet.settings import parse


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_EPOCHS", "7")
    monkeypatch.setenv("TRAINER_BATCH_SIZE", "3")
    monkeypatch.setenv("TRAINER_LR", "")  # compose passes unset variables on as empty ones
    settings = parse(TrainSettings, ["--epochs", "9"])
    assert (settings.epochs, settings.batch_size, settings.lr) == (9, 3, None)
    recipe = settings.resolved_recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (9, 3, 2e-3)


@pytest.mark.parametrize("name", ["unset", "None", "null"])
def test_every_name_of_a_folder_is_taken_literally(name: str) -> None:
    assert parse(TrainSettings, ["--data", name]).data == name


def test_the_service_has_its_own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_MAX_PIXELS", "99")
    monkeypatch.setenv("TRAINER_PORT", "1")
    settings = parse(ServeSettings, [])
    assert (settings.max_pixels, settings.port) == (99, 8000)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "0"], "--epochs (or TRAINER_EPOCHS): input should be greater than or equal to 1, found '0'"),
        (["--epochs", "many"], "--epochs (or TRAINER_EPOCHS): input should be a valid integer"),
        (
            ["--recipe", "best"],
            "--recipe (or TRAINER_RECIPE): input should be 'default', 'quick', 'tutorial' or 'paper'",
        ),
        (["--bogus", "1"], "unrecognized arguments: --bogus"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--data", ""], "--data: expected a value, found an empty one"),
        (["--data="], "--data: expected a value, found an empty one"),
        (["--data", "a", "--data", "b"], "--data: expected once, found twice: a and b"),
        (["--epochs", "9" * 310], "--epochs (or TRAINER_EPOCHS): input should be less than or equal to 2147483648"),
        (["--seed", str(10**18)], "--seed (or TRAINER_SEED): input should be less than 4294967296"),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(TrainSettings, arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("unet-train: error: ")
    assert printed.count("\n") == 1


def test_a_wrong_variable_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVICE_PORT", "99999")
    with pytest.raises(SystemExit):
        parse(ServeSettings, [])
    assert "--port (or SERVICE_PORT): input should be less than or equal to 65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keys-everywhere"], "--keys-everywhere (or SERVICE_KEYS_EVERYWHERE): expected keys in SERVICE_API_KEYS"),
        (["--api-keys", 'a"b'], 'expected keys of printable ASCII characters but []"'),
        (["--root-path", "unet/"], "--root-path (or SERVICE_ROOT_PATH): string should match pattern"),
        *[
            (["--watch-s", value], f"--watch-s (or SERVICE_WATCH_S): expected 0, or at least 0.01, found '{value}'")
            for value in ("1e-300", "-1", "nan", "inf")
        ],
    ],
)
def test_wrong_flags_of_the_service(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(ServeSettings, arguments)
    assert said in capsys.readouterr().err


def test_arguments_without_flags_and_lists_by_several_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse(SegmentSettings, ["a,b.tif", "--output", "mask", "--output", "labels,table", "c", "--tta"])
    assert settings.paths == ["a,b.tif", "c"]
    assert settings.output == ["mask", "labels", "table"]
    monkeypatch.setenv("SEGMENT_PATHS", "a, b")
    monkeypatch.setenv("SEGMENT_OUTPUT", "probability,mask,mask")
    monkeypatch.setenv("SEGMENT_CLASS", "cell")  # `class` is no name for a field
    settings = parse(SegmentSettings, [])
    assert (settings.paths, settings.output, settings.class_) == (["a", "b"], ["probability", "mask"], "cell")
    assert parse(SegmentSettings, ["--class", "nucleus", "c"]).class_ == "nucleus"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected PATH, found none"),
        (["a", "--output", "mask,masks"], "--output (or SEGMENT_OUTPUT): expected mask, probability, labels, "),
        (["a", "--url", "localhost:8000"], "--url (or SEGMENT_URL): expected http://HOST:PORT, or https, found"),
        (
            ["a", "--model", "m", "--url", "http://h"],
            "expected --model or --url (or SEGMENT_MODEL or SEGMENT_URL), found",
        ),
        (
            ["a", "--device", "cpu", "--url", "http://h"],
            "--device: expected with --model only, as a service has its own",
        ),
        (["a", "--wait-s", "3"], "--wait-s: expected with --url only"),
        (["a", "--class", "cell"], "--class: expected with --output probability only"),
        (["a", "--api-key", "clé", "--url", "http://h"], "--api-key (or SEGMENT_API_KEY): expected printable ASCII"),
        (["a", "--out", "b", "--out", "c"], "--out: expected once, found twice: b and c"),
        (["a", "--output="], "--output: expected a value, found an empty one"),
    ],
)
def test_wrong_flags_of_unet_segment(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(SegmentSettings, arguments)
    printed = capsys.readouterr().err
    assert (stopped.value.code, printed.count("\n")) == (2, 1)
    assert printed.startswith(f"unet-segment: error: {said}")
    assert "clé" not in printed


@pytest.mark.parametrize("settings", [TrainSettings, ServeSettings])
def test_help_names_every_flag(settings: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(settings, ["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for name in settings.model_fields:  # type: ignore[attr-defined]
        assert f"--{name.replace('_', '-')}" in printed
    assert "environment variable" in " ".join(printed.split())
    assert not re.search(r"\b(str|int|float|bool|Path|SecretStr)\b", printed)  # types of Python mean nothing to users
    assert printed.replace("\n", "").isprintable()  # else grep takes it for a binary file


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(ServeSettings, ["--version"])
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"unet-serve {unet.__version__}\n")


def test_unknown_variables_are_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SERVICE_MAX_PIXEL", "9")
    parse(ServeSettings, [])
    printed = capsys.readouterr().err
    assert (
        printed
        == "unet-serve: warning: SERVICE_MAX_PIXEL is no setting of unet-serve: did you mean SERVICE_MAX_PIXELS?\n"
    )


LINKS = {
    "SERVICE_SERVICE_HOST": "10.0.0.1",
    "SERVICE_SERVICE_PORT": "80",
    "SERVICE_SERVICE_PORT_HTTP": "80",
    "SERVICE_PORT": "tcp://10.0.0.1:80",
    "SERVICE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "SERVICE_PORT_80_TCP_PROTO": "tcp",
    "SERVICE_PORT_80_TCP_PORT": "80",
    "SERVICE_PORT_80_TCP_ADDR": "10.0.0.1",
}
"""What Kubernetes sets in pods beside a Service called `service` with a port called http."""
WARNING = (
    "unet-serve: warning: SERVICE_PORT=tcp://10.0.0.1:80 is a link that Kubernetes makes to a Service: ignored "
    "(enableServiceLinks: false makes none)\n"
)


def test_service_links_of_kubernetes_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LINKS.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.replace("SERVICE", "SERVICE_MODEL", 1), value)  # of another Service, `service-model`
    assert parse(ServeSettings, []).port == 8000
    assert capsys.readouterr().err == WARNING
    assert parse(ServeSettings, ["--port", "9000"]).port == 9000
    assert parse(ServeSettings, []).model == ServeSettings(port=8000).model
    monkeypatch.setenv("SERVICE_PORTS", "1")
    parse(ServeSettings, ["--port", "0"])
    assert capsys.readouterr().err == (
        WARNING + "unet-serve: warning: SERVICE_PORTS is no setting of unet-serve: did you mean SERVICE_PORT?\n"
    )


def test_what_is_no_service_link_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LINKS.items():
        if name != "SERVICE_PORT":
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("SERVICE_PORT", "9000")
    assert parse(ServeSettings, []).port == 9000
    assert capsys.readouterr().err.count("is no setting of unet-serve") == len(LINKS) - 1
    monkeypatch.setenv("SERVICE_PORT", "http://10.0.0.1:80")
    with pytest.raises(SystemExit):
        parse(ServeSettings, [])


@pytest.mark.parametrize(
    ("program", "missing", "extra"),
    [("trainer", "pooch", "train"), ("trainer", "skimage", "train"), ("service", "fastapi", "serve")],
)
def test_a_missing_extra_is_named(program: str, missing: str, extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from {program}.__main__ import main; sys.exit(main([]))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"is not installed; expected the extra: pip install '.[{extra}]'" in ended.stderr
    assert ended.stderr.count("\n") == 1
