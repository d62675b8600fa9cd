"""Client of a viola server: sound in, embeddings and tags out.

from viola_client import Client

with Client("http://localhost:8000") as viola:
    vector = viola.embed("dog.wav").vector
    tags = viola.classify("dog.wav").tags
"""

from viola_client.client import AsyncClient, Client
from viola_client.errors import (
    AudioMissing,
    AudioTooLong,
    AudioTooShort,
    AudioUnreadable,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    Unauthorized,
    UnknownHead,
    UnknownModel,
    Unreachable,
    UnsupportedMediaType,
    UploadTimeout,
    ViolaError,
)
from viola_client.results import Classification, Embedding, Segment, Tag
from viola_client.retries import Retries

__all__ = [
    "AsyncClient",
    "AudioMissing",
    "AudioTooLong",
    "AudioTooShort",
    "AudioUnreadable",
    "BadRequest",
    "BodyTooLarge",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "Embedding",
    "InternalError",
    "Overloaded",
    "Retries",
    "Segment",
    "Tag",
    "Unauthorized",
    "UnknownHead",
    "UnknownModel",
    "Unreachable",
    "UnsupportedMediaType",
    "UploadTimeout",
    "ViolaError",
]
