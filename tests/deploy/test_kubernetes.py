"""The manifests against the published schemas, and against the server that they are about.

Whole overlays, with every component, are rendered by kustomize, which is part of kubectl: skipped where there
is none. What is complete by itself, in base/ and of the components, is checked everywhere.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.http.app import VERSION, create_app
from service.http.middleware import PAGE_FILES, PUBLIC_PATHS
from service.process.metrics import Metrics
from service.settings import Settings

kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
COMPONENTS = KUBERNETES / "components"
OVERLAYS = ("cpu", "gpu")
KUBECTL = shutil.which("kubectl")
OLDEST = "1.29"  # autoscaling/v2, policy/v1 and networking.k8s.io/v1 are older
VERSIONS = [OLDEST, kubernetes_validate.latest_version()]

# Not sent to the API server as they are:
NO_MANIFESTS = {"prometheus-adapter.yaml": "values of a Helm chart"}
# Of the Prometheus operator, not of Kubernetes:
OPERATORS = {"ServiceMonitor", "PrometheusRule"}
TOGETHER = [
    "keys",
    "queue",
    "ingress",
    "prometheus-operator",
]  # with one of the two that bring models, or none

Manifest = dict[str, Any]


def manifests(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kustomization(folder: Path) -> Manifest:
    (only,) = manifests(folder / "kustomization.yaml")
    return only


def resources_of(folder: Path) -> list[Path]:
    """The files that a kustomization takes as they are."""
    return [folder / name for name in kustomization(folder).get("resources", []) if name.endswith(".yaml")]


COMPLETE = sorted({path for folder in (BASE, *COMPONENTS.iterdir()) for path in resources_of(folder)})


def base() -> dict[str, Manifest]:
    """By kind."""
    return {each["kind"]: each for path in resources_of(BASE) for each in manifests(path)}


def patch(component: str, name: str) -> Manifest:
    (only,) = manifests(COMPONENTS / component / name)
    return only


def rendered(folder: Path) -> dict[str, Manifest]:
    """What `kubectl apply -k` would send, by kind."""
    if not KUBECTL:
        pytest.skip("there is no kubectl")
    command = [KUBECTL, "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def with_components(overlay: str, components: list[str], folder: Path) -> dict[str, Manifest]:
    """The overlay with these components in place of its own."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    path = folder / "kubernetes" / overlay / "kustomization.yaml"
    changed = kustomization(path.parent) | {"components": [f"../components/{name}" for name in components]}
    path.write_text(yaml.safe_dump(changed))
    return rendered(path.parent)


def check(manifest: Manifest, version: str) -> None:
    """Raises where the manifest does not fit its kind's schema, unknown fields included."""
    if manifest["kind"] not in OPERATORS:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    models = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")
    read = getattr(models, manifest["kind"]).model_validate(manifest)
    # The models leave out in silence what they do not know.
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


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
    for unit, factor in (("Ki", 1024), ("Mi", 1024**2), ("Gi", 1024**3), ("m", 0.001)):
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity)


def test_every_file_is_used_or_named_as_not() -> None:
    for folder in {path.parent for path in KUBERNETES.rglob("*.yaml")} - {KUBERNETES}:
        told = kustomization(folder)
        used = {*told.get("resources", []), *(each["path"] for each in told.get("patches", []))}
        there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in used if name.endswith(".yaml")} == there, folder
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == set(NO_MANIFESTS)


def test_every_component_is_offered_by_both_overlays() -> None:
    for overlay in OVERLAYS:
        text = (KUBERNETES / overlay / "kustomization.yaml").read_text()
        named = set(re.findall(r"(?:\.\./components/| or )([a-z-]+)", text))
        assert {path.name for path in COMPONENTS.iterdir()} == named
        assert kustomization(KUBERNETES / overlay)["components"] == ["../components/keys"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_complete_fits_the_published_schemas(path: Path, version: str) -> None:
    for manifest in manifests(path):
        check(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("models", ["of the image", "models-volume", "models-image"])
def test_an_overlay_with_all_components_fits_them_too(
    overlay: str, models: str, version: str, tmp_path: Path
) -> None:
    more = [models] if (COMPONENTS / models).exists() else []
    found = with_components(overlay, TOGETHER + more, tmp_path)
    added = {"Ingress", *OPERATORS} | ({"PersistentVolumeClaim"} if "volume" in models else set())
    assert set(found) == set(base()) | added
    for manifest in found.values():
        check(manifest, version)
        assert manifest["metadata"]["labels"] == {"app.kubernetes.io/name": "viola"}
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "viola"


def test_the_schemas_are_strict() -> None:
    deployment = base()["Deployment"]
    container(deployment)["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        check(deployment, OLDEST)


def test_those_of_the_operator_are_strict_as_well() -> None:
    (monitor,) = manifests(COMPONENTS / "prometheus-operator" / "servicemonitor.yaml")
    monitor["spec"]["endpoints"][0]["intervall"] = "1s"
    with pytest.raises(AssertionError):
        check(monitor, OLDEST)


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


def test_it_scales_by_cpu_where_there_is_no_adapter() -> None:
    """An autoscaler that cannot ask for one of its metrics never scales down."""
    found = base()
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["resource"]["name"] == "cpu"


def test_with_the_adapter_it_scales_by_the_fill_of_the_queue_as_sizing_says() -> None:
    """tests/deploy/test_prometheus.py evaluates it against a server at its limit."""
    queue, cpu = patch("queue", "horizontalpodautoscaler.yaml")["spec"]["metrics"]
    assert [cpu] == base()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (adapter,) = manifests(KUBERNETES / "prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == queue["pods"]["metric"]["name"]
    page = Metrics().page().decode()
    for name in re.findall(r"viola_\w+", rule["seriesQuery"] + rule["metricsQuery"]):
        assert f"\n{name} " in page
    sizing = (ROOT / "docs" / "sizing.md").read_text()
    (mark,) = re.findall(
        r"`viola_queue_frames / viola_queue_limit_frames` above ([\d.]+) for minutes", sizing
    )
    assert number(queue["pods"]["target"]["averageValue"]) == float(mark)


def test_a_misspelt_secret_keeps_the_pod_waiting_rather_than_open() -> None:
    template = patch("keys", "keys.yaml")["spec"]["template"]["spec"]
    (volume,) = template["volumes"]
    assert not volume["secret"].get("optional")
    (item,) = volume["secret"]["items"]
    (mount,) = template["containers"][0]["volumeMounts"]
    assert "subPath" not in mount  # which would stay as it was when the secret changes
    (variable,) = template["containers"][0]["env"]
    assert variable["name"] == "VIOLA_API_KEYS_FILE"
    assert variable["value"] == f"{mount['mountPath']}/{item['path']}"
    assert "envFrom" not in container(base()["Deployment"])


def test_the_secret_of_the_docs_is_the_one_that_is_mounted(tmp_path: Path) -> None:
    if not KUBECTL:
        pytest.skip("there is no kubectl")
    page = (ROOT / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"^ +(kubectl .*create secret .*)$", page, re.MULTILINE)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "api_keys").write_text("first\n")
    command = [*command.split(), "--dry-run=client", "--output=yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    secret = yaml.safe_load(done.stdout)
    (volume,) = patch("keys", "keys.yaml")["spec"]["template"]["spec"]["volumes"]
    assert secret["metadata"] | {"creationTimestamp": None} == {
        "name": volume["secret"]["secretName"],
        "namespace": kustomization(KUBERNETES / "cpu")["namespace"],
        "creationTimestamp": None,
    }
    assert set(secret["data"]) == {item["key"] for item in volume["secret"]["items"]}


def test_the_operator_scrapes_the_service_and_alerts_as_prometheus_does(tmp_path: Path) -> None:
    (monitor,) = manifests(COMPONENTS / "prometheus-operator" / "servicemonitor.yaml")
    service = base()["Service"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    (labels,) = [each["pairs"] for each in kustomization(KUBERNETES / "cpu")["labels"]]
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    rules = COMPONENTS / "prometheus-operator" / "prometheusrule.yaml"
    (rule,) = manifests(rules)
    assert [rule["spec"]] == manifests(ROOT / "deploy" / "alerts.yml"), "run deploy/prometheusrule.sh"
    subprocess.run(["sh", ROOT / "deploy" / "prometheusrule.sh", tmp_path / "again.yaml"], check=True)
    assert (tmp_path / "again.yaml").read_text() == rules.read_text(), "run deploy/prometheusrule.sh"


def test_the_ingress_leads_to_every_route_but_those_of_the_cluster() -> None:
    (ingress,) = manifests(COMPONENTS / "ingress" / "ingress.yaml")
    (rule,) = ingress["spec"]["rules"]
    service = base()["Service"]
    for path in rule["http"]["paths"]:
        assert path["backend"]["service"]["name"] == service["metadata"]["name"]
        assert path["backend"]["service"]["port"]["name"] == service["spec"]["ports"][0]["name"]

    def leads(route: str) -> bool:
        """As Kubernetes compares: by whole parts of the path."""
        return any(
            route == path["path"]
            or (path["pathType"] == "Prefix" and route.startswith(f"{path['path'].rstrip('/')}/"))
            for path in rule["http"]["paths"]
        )

    documented = set(create_app(Settings()).openapi()["paths"])
    closed = {route for route in documented | PUBLIC_PATHS | {f"{PAGE_FILES}page.js"} if not leads(route)}
    assert closed == {"/metrics", "/health/live", "/health/ready"}


def test_models_of_ones_own_lie_where_the_server_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (models_dir,) = re.findall(r"VIOLA_MODELS_DIR=(\S+)", dockerfile)
    for component in ("models-volume", "models-image"):
        template = patch(component, "models.yaml")["spec"]["template"]["spec"]
        (mount,) = template["containers"][0]["volumeMounts"]
        assert mount["mountPath"] == models_dir
        assert mount["readOnly"]
    of_viola, _ = patch("models-image", "models.yaml")["spec"]["template"]["spec"]["initContainers"]
    assert f"{models_dir}/." in of_viola["command"]


def test_a_pod_asks_for_the_memory_that_sizing_tells() -> None:
    (mb,) = re.findall(r"Allow (\d+) MB per process", (ROOT / "docs" / "sizing.md").read_text())
    for overlay in OVERLAYS:
        resources = container(patch_of(overlay))["resources"]
        assert number(resources["requests"]["memory"]) >= float(mb) * 1e6 * Settings().workers


def test_the_user_is_the_images() -> None:
    (uid,) = re.findall(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert base()["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(uid)


def patch_of(overlay: str) -> Manifest:
    (only,) = manifests(KUBERNETES / overlay / "resources.yaml")
    return only


def test_bodies_have_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = base()["Deployment"]
    (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
    assert number(volume["emptyDir"]["sizeLimit"]) > settings_of(deployment, monkeypatch).max_held_bytes


@pytest.mark.parametrize(("overlay", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_an_overlay_says_the_device_and_what_it_takes(
    overlay: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = rendered(KUBERNETES / overlay)["Deployment"]
    assert settings_of(deployment, monkeypatch).device == device
    viola = container(deployment)
    assert viola["image"].endswith(f":{VERSION}-{overlay}")
    wanted, most = viola["resources"]["requests"], viola["resources"]["limits"]
    assert set(wanted) == set(most)
    assert all(number(wanted[name]) <= number(most[name]) for name in most)
    assert wanted.get("nvidia.com/gpu") == most.get("nvidia.com/gpu") == {"cpu": None, "cuda": "1"}[device]
