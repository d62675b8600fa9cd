"""The example for KServe: what is Kubernetes' own is checked by its schema, the rest against the server."""

from pathlib import Path
from typing import Any

import pytest

from service.http.app import create_app
from service.http.middleware import PUBLIC_PATHS
from service.settings import Settings

kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

FILE = Path(__file__).parents[2] / "deploy" / "kserve" / "inferenceservice.yaml"
OF_KSERVE = {"minReplicas", "maxReplicas", "timeout"}  # of a predictor, beside what a pod has


@pytest.fixture
def predictor() -> dict[str, Any]:
    service = yaml.safe_load(FILE.read_text())
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService"
    assert set(service["spec"]) == {"predictor"}
    found: dict[str, Any] = service["spec"]["predictor"]
    return found


def test_a_predictor_is_a_pod_but_for_what_kserve_adds(predictor: dict[str, Any]) -> None:
    assert predictor.keys() >= OF_KSERVE
    spec = {name: value for name, value in predictor.items() if name not in OF_KSERVE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "viola"}, "spec": spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_its_probes_are_routes_that_ask_for_no_key(predictor: dict[str, Any]) -> None:
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    (port,) = container["ports"]
    routes = create_app(Settings()).openapi()["paths"]
    for probe in (container["readinessProbe"], container["livenessProbe"]):
        assert probe["httpGet"]["port"] == port["containerPort"] == Settings().port
        assert probe["httpGet"]["path"] in PUBLIC_PATHS & routes.keys()


def test_a_request_may_take_as_long_as_the_server_allows(predictor: dict[str, Any]) -> None:
    assert predictor["timeout"] > Settings().deadline_s


def test_its_variables_are_settings(predictor: dict[str, Any]) -> None:
    (container,) = predictor["containers"]
    given = {each["name"].removeprefix("VIOLA_").lower(): each["value"] for each in container["env"]}
    assert given.keys() <= Settings.model_fields.keys()
    Settings(**given)
