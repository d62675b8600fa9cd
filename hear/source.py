"""A model folder or a server's address in; what benchmarks ask of a model out: its card, vectors, frames.

    models/byola                           ─► Folder ─► the pipeline of the server, in this process
    http://localhost:8000                  ─► Server ─► its default model, by viola_client
    http://localhost:8000/?model=byola     ─► Server ─► that model

    sounds (n_samples,) each ─► vectors (n_sounds, D)          texts ─► vectors (n_texts, D)
                             ─► frames  (n_sounds, T', D)

Samples are mono, in [-1, 1], at `card.sample_rate`. Everything is NumPy's: torch is needed by those who call.
"""

import os
import weakref
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from service.bulk.offline import BATCH_FRAMES
from service.inference.card import Card
from service.inference.model import Model, Precision
from service.inference.session import Device
from service.inference.threads import usable_cores
from service.inference.windows import Embedding, Piece, Pool, cut, embed_pieces

Array = NDArray[np.float32]

TEXTS_IN_A_REQUEST = 64
AT_ONCE = 4  # requests: enough that a server's decoding and inference overlap
WITHOUT_CLIENT = "a server is asked through the package viola-client: `pip install ./clients/python`"


class Source(Protocol):
    """card: of the model. has_text: whether it embeds texts, too. precision: float32 or int8."""

    card: Card
    has_text: bool
    precision: str

    def vectors(self, sounds: Sequence[Array], *, normalize: bool = False) -> Array:
        """Sounds (n_samples,) of any lengths -> (n_sounds, D) float32: what /embed answers. normalize: as
        there. Raises BadRequest where the model has no projection."""
        ...

    def frames(self, sounds: Sequence[Array]) -> tuple[Array, NDArray[np.float64]]:
        """Sounds of one length -> frames (n_sounds, T', D) and their centres (T',) in seconds."""
        ...

    def text_vectors(self, texts: Sequence[str], *, normalize: bool = False) -> Array:
        """Texts -> (n_texts, D) float32, in the space of the sounds. Raises what the model's text tower
        raises, and NoText where it has none."""
        ...


def open_source(where: str, *, precision: Precision = "float32", device: Device = "auto") -> Source:
    """A model folder's path, or a server's address. precision and device are those of a folder; a server has
    its own, and asks for the key in VIOLA_API_KEY where it needs one. Raises ModelFolderError, ValueError for
    a model that the server has not, and viola_client's errors."""
    if where.startswith(("http://", "https://")):
        return Server(where)
    cores, _ = usable_cores()
    model = Model.load(Path(where), precision=precision, device=device, threads=cores)
    return Folder(model, Path(where))


class Folder:
    """The pipeline of the server without HTTP, as `Source`. path: where the model was loaded from."""

    def __init__(self, model: Model, path: Path | None = None) -> None:
        self.model = model
        self.path = path
        self.card = model.card
        self.has_text = model.text is not None
        self.precision: str = model.precision

    def vectors(self, sounds: Sequence[Array], *, normalize: bool = False) -> Array:
        project = self.model.project_of(normalize=normalize)
        vectors = np.stack([one.vector for one in embed_sounds(self.model, sounds, frames=False)])
        return vectors if project is None else project(vectors)

    def frames(self, sounds: Sequence[Array]) -> tuple[Array, NDArray[np.float64]]:
        return together(self.card, embed_sounds(self.model, sounds, frames=True), len(sounds[0]))

    def text_vectors(self, texts: Sequence[str], *, normalize: bool = False) -> Array:
        tower = self.model.text_encoder()
        vectors = tower.embed_all([tower.tokens(text, f"the text {text[:40]!r}") for text in texts])
        project = self.model.project_of(normalize=normalize)
        return vectors if project is None else project(vectors)


class Server:
    """A model of a server that runs, as `Source`."""

    def __init__(self, address: str) -> None:
        try:
            from viola_client import Client
        except ImportError as error:
            raise ValueError(WITHOUT_CLIENT) from error
        parts = urlsplit(address)
        wanted = parse_qs(parts.query).get("model", [None])[0]
        url = parts._replace(query="").geturl()
        self._client = Client(url, api_key=os.environ.get("VIOLA_API_KEY"))
        weakref.finalize(self, self._client.close)  # benchmarks have no moment for it
        described = self._client.models()
        models = {each["card"]["name"]: each for each in described["models"]}
        self._name = wanted or described["default"]
        if self._name not in models:
            raise ValueError(f"{url} serves no model `{self._name}`; it serves {', '.join(sorted(models))}")
        of_model = models[self._name]
        self.card = Card.model_validate(of_model["card"])
        self.has_text = bool(of_model["text"])
        if of_model["precision"] is None:  # it is loaded by its first request
            self.vectors([np.zeros(self.card.min_samples, dtype=np.float32)])
            of_model = next(
                each for each in self._client.models()["models"] if each["card"]["name"] == self._name
            )
        self.precision: str = of_model["precision"]

    def vectors(self, sounds: Sequence[Array], *, normalize: bool = False) -> Array:
        return np.stack([one.vector for one in self._embed(sounds, normalize=normalize or None)])

    def frames(self, sounds: Sequence[Array]) -> tuple[Array, NDArray[np.float64]]:
        return together(self.card, self._embed(sounds, frames=True), len(sounds[0]))

    def text_vectors(self, texts: Sequence[str], *, normalize: bool = False) -> Array:
        parts = [texts[i : i + TEXTS_IN_A_REQUEST] for i in range(0, len(texts), TEXTS_IN_A_REQUEST)]
        ask = self._client.embed_text
        return np.concatenate([ask(list(part), model=self._name, normalize=normalize) for part in parts])

    def _embed(self, sounds: Sequence[Array], **options: Any) -> list[Any]:
        """viola_client's embeddings, in order. Raises the first error."""
        pairs = [(sound, self.card.sample_rate) for sound in sounds]
        answers = list(self._client.embed_many(pairs, concurrency=AT_ONCE, model=self._name, **options))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def embed_sounds(model: Model, sounds: Sequence[Array], *, frames: bool) -> list[Embedding]:
    """One embedding per sound, whatever their lengths. The first windows of all of them share batches, those
    of a length together; then the second ones, and so on: no more than a window of each is held. What lies
    beyond full scale is clipped, as the server does with files."""
    pools = [Pool(model.card, frames=frames) for _ in sounds]
    clipped = [np.clip(sound, -1, 1) for sound in sounds]
    pieces = [cut(model.logmel_blocks([sound]), model.card.windows) for sound in clipped]
    for of_one_window in zip_longest(*pieces):
        there = [(pool, piece) for pool, piece in zip(pools, of_one_window, strict=True) if piece is not None]
        for batch in _batches(model, there):
            outputs = embed_pieces(model.run, [piece for _, piece in batch], frames=frames)
            for (pool, piece), output in zip(batch, outputs, strict=True):
                pool.add(piece.window, output)
    return [pool.result() for pool in pools]


def _batches(model: Model, pieces: list[tuple[Pool, Piece]]) -> list[list[tuple[Pool, Piece]]]:
    """By length, no more than BATCH_FRAMES with their padding in one, or a single piece."""

    def length(one: tuple[Pool, Piece]) -> int:
        return model.padded_length(one[1].logmel.shape[1])

    batches: list[list[tuple[Pool, Piece]]] = []
    for one in sorted(pieces, key=length):
        if not batches or (len(batches[-1]) + 1) * length(one) > BATCH_FRAMES:
            batches.append([])
        batches[-1].append(one)
    return batches


def together(card: Card, embeddings: Sequence[Any], n_samples: int) -> tuple[Array, NDArray[np.float64]]:
    """Embeddings with frames, of sounds of `n_samples` -> frames (n_sounds, T', D), centres (T',) in seconds.

    A frame whose centre lies beyond the end of the sound is left out; where a short sound has only one frame,
    its centre is that of the sound.
    """
    times_s = np.array(embeddings[0].times_s)
    duration_s = n_samples / card.sample_rate
    times_s[0] = min(times_s[0], duration_s / 2)
    times_s = times_s[times_s <= duration_s]
    frames = np.stack([cast(Array, one.frames)[: len(times_s)] for one in embeddings])
    return frames, times_s
