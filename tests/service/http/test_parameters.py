"""Query strings checked, and told to the OpenAPI document."""

import pytest
from starlette.datastructures import QueryParams

from service.errors import BadRequest
from service.http.openapi_document import query_parameters
from service.http.parameters import ClassifyParameters, EmbedParameters, read


def test_a_query_becomes_values() -> None:
    parameters = read(EmbedParameters, QueryParams("frames=true&window_s=2&dtype=float16"))
    assert parameters == EmbedParameters(frames=True, window_s=2.0, dtype="float16")
    assert parameters.hop_s is None


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("top_k=0", "top_k: input should be greater than or equal to 1 (it is '0')"),
        ("topk=1", "the parameter `topk` is not known; /docs lists those of this route"),
        ("hop_s=1", "hop_s means nothing without window_s; give both or none"),
        ("begin=0.5", "begin means nothing without segments=true; give both or none"),
        (
            "segments=1&begin=0.5&end=0.6",
            "end must not be greater than begin: a segment ends with a lower score",
        ),
        ("segments=1&begin=0", "begin: input should be greater than 0 (it is '0')"),
        ("top_k=1&head=a&top_k=1", "the parameter `top_k` is given 2 times; give it once"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(query: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(ClassifyParameters, QueryParams(query))
    assert str(refused.value) == sentence


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(BadRequest, match=r"top_k.*; threshold"):
        read(ClassifyParameters, QueryParams("top_k=-1&threshold=2"))


def test_the_document_has_bounds_defaults_and_descriptions() -> None:
    parameters = {each["name"]: each for each in query_parameters(ClassifyParameters)["parameters"]}
    assert parameters["top_k"]["schema"] == {
        "default": 5,
        "minimum": 1,
        "maximum": 1000,
        "title": "Top K",
        "type": "integer",
    }
    assert parameters["model"]["schema"]["type"] == "string"
    assert all(each["description"] and not each["required"] for each in parameters.values())
