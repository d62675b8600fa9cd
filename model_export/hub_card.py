"""card.json in, the page of a model on the Hugging Face hub out: README.md, with its facts as YAML in front.

The values are written as JSON, which is YAML, too.
"""

import json
import re
from collections.abc import Iterator

from pydantic import JsonValue

from service.inference.card import Card

# The hub's names of licences: SPDX's in small letters. What it has no name for is `other`, and named apart.
HUBS_LICENCES = re.compile(
    r"apache-2\.0|mit|cc0-1\.0|cc-by(-sa|-nc|-nd|-nc-sa|-nc-nd)?-[34]\.0|bsd-[23]-clause|gpl-[23]\.0"
    r"|agpl-3\.0|lgpl-[23](\.[01])?|mpl-2\.0|isc|unlicense|odbl|openrail"
)
METRICS = {"accuracy": "accuracy", "mAP": "mean_average_precision"}
HEADS = "heads/"


def hub_card(card: Card, url: str) -> str:
    """url: where the folder is pushed to."""
    return "\n".join(["---", *_front_matter(card), "---", "", *_page(card, url)]) + "\n"


def _front_matter(card: Card) -> Iterator[str]:
    licence = card.licence.lower()
    if HUBS_LICENCES.fullmatch(licence):
        yield f"license: {licence}"
    else:
        yield "license: other"
        yield f"license_name: {_yaml(card.licence)}"
    yield "library_name: viola"
    yield f"pipeline_tag: {'audio-classification' if _heads(card) else 'feature-extraction'}"
    yield f"tags: {_yaml(['viola', 'audio', 'embeddings', 'onnx', card.encoder.name])}"
    if results := _results(card):
        yield f"metrics: {_yaml(sorted({_metric(each) for each in results}))}"
        yield f"model-index: {_yaml([{'name': card.name, 'results': [_indexed(each) for each in results]}])}"


def _indexed(result: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """A row of the card's `evaluation` as the hub's model index has it."""
    task = result["task"]
    return {
        "task": {"type": "audio-classification"},
        "dataset": {"type": task, "name": task, "split": result.get("split", "test")},
        "metrics": [{"type": _metric(result), "value": result["value"]}],
    }


def _page(card: Card, url: str) -> Iterator[str]:
    yield f"# {card.name} {card.version}"
    yield from ("", card.description, "")
    numbers = f"{card.embedding_size} numbers for any sound, one frame every {card.frame_period_ms:g} ms"
    yield f"{card.encoder.name}: {numbers}, at {card.sample_rate} Hz."
    yield from ("", "    " + f"python -m model_export pull --from {url} --out models/{card.name}", "")
    if heads := _heads(card):
        yield from (f"Heads: {', '.join(heads)}.", "")
    if results := _results(card):
        yield from ("## Results", "", "| task | metric | value | 95 % | clips |", "|---|---|---|---|---|")
        yield from (_row(each) for each in results)
        yield ""
    if data := card.training.get("data"):
        yield from ("## Training data", "", str(data), "")
    for title, text in (("Intended use", card.intended_use), ("Limitations", card.limitations)):
        if text:
            yield from (f"## {title}", "", text, "")
    yield from ("## Files", "", "| file | SHA-256 |", "|---|---|")
    yield from (f"| {_cell(name)} | `{digest}` |" for name, digest in card.files.items())


def _results(card: Card) -> list[dict[str, JsonValue]]:
    return [each for each in card.evaluation if {"task", "metric", "value"} <= each.keys()]


def _row(result: dict[str, JsonValue]) -> str:
    interval = result.get("ci95")
    between = " to ".join(str(end) for end in interval) if isinstance(interval, list) else ""
    cells = (result["task"], result["metric"], result["value"], between, result.get("test_clips", ""))
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _heads(card: Card) -> list[str]:
    return [name.removeprefix(HEADS).rpartition(".")[0] for name in card.files if name.startswith(HEADS)]


def _metric(result: dict[str, JsonValue]) -> str:
    name = str(result["metric"])
    return METRICS.get(name, name)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")


def _yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
