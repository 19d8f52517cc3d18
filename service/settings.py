"""The settings of `unet-serve`: every limit with its one default."""

import math
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from service.logs import Style
from unet.device import DeviceChoice, PrecisionChoice
from unet.pixels import InputRange
from unet.settings import CommaSeparated, ProgramSettings


def _check_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()) or set(key.get_secret_value()) & set('[]"'):
        raise ValueError('expected keys of printable ASCII characters but []", separated by commas')  # no JSON
    return key


def _as_sent(origin: str) -> str:
    """An origin as browsers send it: in lower case, without the default port of its scheme."""
    scheme, _, host = origin.lower().partition("://")
    return origin.lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme, "")) if host else origin


PREFIX = r"^(/[\w.~@:+=-]+)*$"  # with @ and : as in JupyterHub's /user/ann@example.org/proxy/host:8000
Key = Annotated[SecretStr, AfterValidator(_check_key)]
Origin = Annotated[str, AfterValidator(_as_sent), Field(pattern=r"^(\*|https?://[^/\s*?#@]+)$")]
Host = Annotated[str, AfterValidator(str.lower), Field(pattern=r"^(\*|(\*\.)?[\w.-]+|\[[0-9a-fA-F:]+\])$")]


class ServeSettings(ProgramSettings):
    """Serves a trained U-Net over HTTP. Starts without a model file, too, and loads it when it appears.
    Each flag is also an environment variable: SERVICE_PORT=9000."""

    model_config = SettingsConfigDict(env_prefix="SERVICE_", cli_prog_name="unet-serve", protected_namespaces=())

    model: Path = Field(Path("model/best_model.pth"), description="the file to serve, watched for newer versions")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(
        8000, ge=0, le=65535, description="port to listen on; 0 for any free one", json_schema_extra={"metavar": "PORT"}
    )
    root_path: str = Field("", pattern=PREFIX, description="prefix, like /unet, under which a proxy offers the service")
    workers: int = Field(1, ge=1, le=64, description="processes that answer; a GPU may be faster than one of them")
    device: DeviceChoice = Field("auto", description="auto, cpu, cuda, cuda:1, mps, or another device of torch")
    precision: PrecisionChoice = Field("auto", description="auto: bf16 where the device is fast at it, else fp32")
    input_range: InputRange = Field("0-1", description="how training images were scaled, for a bare state_dict")
    max_bytes: int = Field(2**28, ge=1, le=2**32, description="largest upload; above: 413")
    max_pixels: int = Field(2**27, ge=1, description="most pixels in an upload, all pages together; above: 413")
    max_pages: int = Field(1000, ge=1, description="most pages in an uploaded TIFF; above: 413")
    max_objects: int = Field(100_000, ge=1, description="most objects in a table or in outlines; above: 413")
    max_parts: int = Field(8, ge=1, description="most parts of a form; above: 413")
    max_header_bytes: int = Field(2**14, ge=1024, description="largest headers of a request; above: 431")
    max_in_flight: int = Field(32, ge=1, description="requests in work or waiting, in each worker; above: 503")
    timeout_s: float = Field(300, gt=0, description="longest time for one request, upload included; above: 504")
    grace_s: float = Field(30, ge=0, allow_inf_nan=False, description="longest time to finish when told to stop")
    idle_s: float = Field(
        10, gt=0, description="longest time for headers, for the next KiB of a body (above: 408), and between requests"
    )
    max_connections: int = Field(512, ge=1, description="open connections, in each worker; above: 503")
    watch_s: float = Field(1, description="seconds between looks at the model file; 0: keep the first one that loads")
    api_keys: CommaSeparated[Key] = Field(
        [], repr=False, description="keys of clients, comma-separated (none: all may ask); safer in SERVICE_API_KEYS"
    )
    keys_everywhere: bool = Field(False, description="health (but not /health/live), metrics and docs need a key, too")
    allowed_hosts: CommaSeparated[Host] = Field(["*"], description="host names, also *.example.org; others: 400")
    cors_origins: CommaSeparated[Origin] = Field([], description="origins whose pages may call it, https://a.org, or *")
    log_format: Style = Field("json", description="JSON objects, one per line, or plain lines for people")

    @field_validator("watch_s")
    @classmethod
    def _is_no_busy_loop(cls, value: float) -> float:
        if value and not 0.01 <= value < math.inf:
            raise ValueError("expected 0, or at least 0.01")
        return value

    @field_validator("keys_everywhere")
    @classmethod
    def _has_keys(cls, value: bool, others: ValidationInfo) -> bool:
        if value and others.data.get("api_keys") == []:
            raise ValueError("expected keys in SERVICE_API_KEYS; without any, all is open")
        return value
