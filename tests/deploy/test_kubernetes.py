"""The manifests against Kubernetes' own schemas, and against the server that they are about.

Whole overlays are rendered by kustomize, which is part of kubectl: skipped where there is none. What lies in
base/ is complete by itself and is checked everywhere.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings

kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
KUBECTL = shutil.which("kubectl")
OLDEST = "1.29"  # autoscaling/v2, policy/v1 and networking.k8s.io/v1 are older
VERSIONS = [OLDEST, kubernetes_validate.latest_version()]

# Not sent to the API server as they are, so that there is no schema of Kubernetes for them:
NO_MANIFESTS = {
    "kustomization.yaml": "read by kustomize",
    "resources.yaml": "a patch; the overlay is checked with it",
    "prometheus-adapter.yaml": "values of a Helm chart",
}

Manifest = dict[str, Any]


def manifests(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def base() -> dict[str, Manifest]:
    """By kind."""
    paths = [path for path in BASE.glob("*.yaml") if path.name not in NO_MANIFESTS]
    return {each["kind"]: each for path in paths for each in manifests(path)}


def rendered(overlay: str) -> dict[str, Manifest]:
    if not KUBECTL:
        pytest.skip("there is no kubectl")
    command = [KUBECTL, "kustomize", str(KUBERNETES / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def container(deployment: Manifest) -> Manifest:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(deployment: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(deployment)["env"]}


def settings_of(deployment: Manifest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the server makes of the container's variables; an unknown one would be passed over in silence."""
    for name, value in environment(deployment).items():
        assert name.removeprefix("VIOLA_").lower() in Settings.model_fields, name
        monkeypatch.setenv(name, value)
    return Settings()


def number(quantity: str) -> float:
    """`512Mi` -> bytes, `2` -> 2."""
    for unit, power in (("Ki", 1), ("Mi", 2), ("Gi", 3)):
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * 1024**power
    return float(quantity)


def test_every_file_is_a_manifest_or_named_as_none() -> None:
    beside = {path.name for path in KUBERNETES.rglob("*.yaml") if path.parent != BASE}
    assert beside <= set(NO_MANIFESTS)
    in_base = {path.name for path in BASE.glob("*.yaml")}
    assert set(yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]) == in_base - set(
        NO_MANIFESTS
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", sorted(BASE.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_lies_in_base_fits_the_published_schemas(path: Path, version: str) -> None:
    if path.name in NO_MANIFESTS:
        return
    for manifest in manifests(path):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_an_overlay_fits_the_published_schemas(overlay: str, version: str) -> None:
    found = rendered(overlay)
    assert set(found) == set(base())
    for manifest in found.values():
        kubernetes_validate.validate(manifest, version, strict=True)
        assert manifest["metadata"]["labels"] == {"app.kubernetes.io/name": "viola"}
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "viola"


def test_the_schemas_are_strict() -> None:
    deployment = base()["Deployment"]
    container(deployment)["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, OLDEST, strict=True)


def test_every_selector_means_the_pods_of_the_deployment() -> None:
    found = base()
    template = found["Deployment"]["spec"]["template"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert selectors == [template["metadata"]["labels"]] * 5


def test_probes_and_ports_are_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = base()
    settings = settings_of(found["Deployment"], monkeypatch)
    routes = create_app(settings).openapi()["paths"]
    viola = container(found["Deployment"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert viola[probe]["httpGet"]["path"] in routes
        assert viola[probe]["httpGet"]["port"] == "http"
    (port,) = viola["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.port)
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    (ingress,) = found["NetworkPolicy"]["spec"]["ingress"]
    assert [each["port"] for each in ingress["ports"]] == [settings.port]


def test_a_pod_is_given_time_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = base()["Deployment"]
    settings = settings_of(deployment, monkeypatch)
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > settings.drain_s + settings.deadline_s + 5
    probe = container(deployment)["readinessProbe"]
    assert settings.drain_s > probe["periodSeconds"] * probe["failureThreshold"]


def test_it_scales_by_a_metric_that_the_server_has_and_the_adapter_gives() -> None:
    found = base()
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"\n{name} " in Metrics().page().decode()
    (adapter,) = manifests(KUBERNETES / "prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert number(metric["pods"]["target"]["averageValue"]) == Settings().max_queue_frames / 10


def test_bodies_have_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = base()["Deployment"]
    (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
    assert number(volume["emptyDir"]["sizeLimit"]) > settings_of(deployment, monkeypatch).max_held_bytes


@pytest.mark.parametrize(("overlay", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_an_overlay_says_the_device_and_what_it_takes(
    overlay: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = rendered(overlay)["Deployment"]
    assert settings_of(deployment, monkeypatch).device == device
    viola = container(deployment)
    assert viola["image"].endswith(f"-{overlay}")
    wanted, most = viola["resources"]["requests"], viola["resources"]["limits"]
    assert set(wanted) == set(most)
    assert all(number(wanted[name]) <= number(most[name]) for name in most)
    assert wanted.get("nvidia.com/gpu") == most.get("nvidia.com/gpu") == {"cpu": None, "cuda": "1"}[device]
