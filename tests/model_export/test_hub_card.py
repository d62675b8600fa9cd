"""The page of a model, read as the hub's own library reads it."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from model_export.hub_card import hub_card
from service.inference.card import load_card

CARD = load_card(Path(__file__).parents[2] / "models" / "byola")


def test_the_hubs_library_finds_the_facts_in_it() -> None:
    page = ModelCard(hub_card(CARD, "hf://me/byola"))
    facts = page.data
    assert (facts.license, facts.library_name) == ("cc-by-sa-4.0", "viola")
    assert facts.pipeline_tag == "audio-classification"  # it has heads
    assert "byola-2022" in facts.tags
    assert facts.metrics == ["accuracy"]
    assert facts.eval_results is not None
    (esc50,) = [result for result in facts.eval_results if result.dataset_type == "esc50"]
    assert (esc50.metric_type, esc50.dataset_split) == ("accuracy", "fold 5")
    assert [esc50.metric_value] == [each["value"] for each in CARD.evaluation if each["task"] == "esc50"]
    assert "python -m model_export pull --from hf://me/byola --out models/byola" in page.text
    assert CARD.limitations in page.text
    assert all(digest in page.text for digest in CARD.files.values())


@pytest.mark.parametrize("licence", ["LicenseRef-NTT-evaluation", 'a "sentence": with # signs | and \\'])
def test_a_licence_that_the_hub_has_no_name_for_is_other(licence: str) -> None:
    changed = CARD.model_copy(update={"licence": licence, "evaluation": [], "files": {}})
    facts = ModelCard(hub_card(changed, "hf://me/byola")).data
    assert (facts.license, facts.license_name) == ("other", licence)
    assert facts.pipeline_tag == "feature-extraction"
