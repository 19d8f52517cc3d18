"""docker/kubernetes.yaml: valid for Kubernetes, and true to the images, the programs and docker-compose.yml."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.settings import ServeSettings
from trainer.settings import TrainSettings
from unet.settings import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker/kubernetes.yaml").read_text()
OBJECTS: dict[str, Any] = {each["kind"]: each for each in yaml.safe_load_all(TEXT)}
PODS = {"trainer": OBJECTS["Job"]["spec"]["template"], "service": OBJECTS["Deployment"]["spec"]["template"]}
SETTINGS = {"trainer": TrainSettings, "service": ServeSettings}


def container(name: str) -> dict[str, Any]:
    (found,) = PODS[name]["spec"]["containers"]
    return found


def dockerfile(name: str) -> str:
    return (ROOT / f"docker/{name}.Dockerfile").read_text()


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Job", "Deployment", "Service"])
def test_it_is_valid(kind: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_what_is_commented_out_is_valid_too() -> None:
    gpu = re.sub(r"# (nvidia|strategy)", r"\1", TEXT)
    job, deployment = (each for each in yaml.safe_load_all(gpu) if each["kind"] in ("Job", "Deployment"))
    for each in (job, deployment):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
        assert each["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("name", PODS)
def test_variables_are_settings(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for each in container(name)["env"]:
        monkeypatch.setenv(each["name"], each.get("value", "a-key"))
    settings = parse(SETTINGS[name], [])
    assert capsys.readouterr().err == ""
    if isinstance(settings, ServeSettings):
        assert settings.max_pixels == ServeSettings.model_fields["max_pixels"].default
        assert [key.get_secret_value() for key in settings.api_keys] == ["a-key"]
    prefix = f"{name.upper()}_"
    mentioned = {each.removeprefix(prefix).lower() for each in re.findall(rf"\b{prefix}[A-Z_]+", TEXT)}
    assert mentioned <= set(SETTINGS[name].model_fields)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_as_hardened_as_the_container_of_compose(name: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    pod, security = PODS[name]["spec"], container(name)["securityContext"]
    assert security["readOnlyRootFilesystem"] is compose["read_only"] is True
    assert security["capabilities"]["drop"] == compose["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in compose["security_opt"]
    assert security["allowPrivilegeEscalation"] is False
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile(name)
    assert (user["runAsNonRoot"], user["fsGroup"]) == (True, user["runAsGroup"])
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
    assert pod["terminationGracePeriodSeconds"] >= int(compose["stop_grace_period"].rstrip("ms")) * (
        60 if compose["stop_grace_period"].endswith("m") else 1
    )


@pytest.mark.parametrize("name", PODS)
def test_what_the_image_writes_and_reads_is_mounted(name: str) -> None:
    pod, mounts = PODS[name]["spec"], {each["mountPath"]: each for each in container(name)["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in mounts.values()} == set(volumes)
    for folder in re.findall(r"(?:SERVICE_MODEL|TRAINER_DATA|TRAINER_OUT)=(/\w+)", dockerfile(name)):
        assert folder in mounts
    claim = volumes[mounts["/model"]["name"]]["persistentVolumeClaim"]["claimName"]
    assert claim == OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert mounts["/model"].get("readOnly", False) == (name == "service")
    assert "readOnly" not in mounts["/tmp"]


def test_ports_and_probes_lead_to_the_service() -> None:
    service, deployment = OBJECTS["Service"]["spec"], OBJECTS["Deployment"]["spec"]
    (port,) = container("service")["ports"]
    assert re.findall(r"EXPOSE (\d+)", dockerfile("service")) == [str(port["containerPort"])]
    assert [each["targetPort"] for each in service["ports"]] == [port["name"]]
    labels = PODS["service"]["metadata"]["labels"].items()
    assert service["selector"].items() <= labels
    assert deployment["selector"]["matchLabels"].items() <= labels
    paths = create_app(ServeSettings()).openapi()["paths"]
    for kind, path in (("startup", "/health/live"), ("liveness", "/health/live"), ("readiness", "/health")):
        probe = container("service")[f"{kind}Probe"]["httpGet"]
        assert probe == {"path": path, "port": port["name"]}
        assert "get" in paths[path]


def test_the_service_has_time_to_finish() -> None:
    _, seconds = container("service")["lifecycle"]["preStop"]["exec"]["command"]
    assert PODS["service"]["spec"]["terminationGracePeriodSeconds"] > int(seconds) + ServeSettings().grace_s


def test_pods_share_the_node_of_the_volume() -> None:
    assert OBJECTS["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    for name, pod in PODS.items():
        (term,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        for other in PODS.values():
            assert term["labelSelector"]["matchLabels"].items() <= other["metadata"]["labels"].items(), name
