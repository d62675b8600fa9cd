"""Client of a viola server: sound in, embeddings and tags out.

from viola_client import Client

with Client("http://localhost:8000") as viola:
    vector = viola.embed("dog.wav").vector
    tags = viola.classify("dog.wav").tags
"""

from viola_client.client import AsyncClient, Client
from viola_client.errors import (
    AudioMissing,
    AudioSilent,
    AudioTooLong,
    AudioTooShort,
    AudioUnreadable,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    HeadConflict,
    HeadOutdated,
    InternalError,
    MalformedHttp,
    ModelUnavailable,
    NoText,
    Overloaded,
    SoundError,
    StorageFailed,
    TeachingLimit,
    TeachingOff,
    TextTooLong,
    Unauthorized,
    UnknownExample,
    UnknownHead,
    UnknownModel,
    Unreachable,
    UnsupportedMediaType,
    UploadTimeout,
    ViolaError,
)
from viola_client.results import Classification, Embedding, Event, LiveWindow, Logmel, Segment, Tag
from viola_client.retries import Retries
from viola_client.teaching import Lesson

__all__ = [
    "AsyncClient",
    "AudioMissing",
    "AudioSilent",
    "AudioTooLong",
    "AudioTooShort",
    "AudioUnreadable",
    "BadRequest",
    "BodyTooLarge",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "Embedding",
    "Event",
    "Forbidden",
    "HeadConflict",
    "HeadOutdated",
    "InternalError",
    "Lesson",
    "LiveWindow",
    "Logmel",
    "MalformedHttp",
    "ModelUnavailable",
    "NoText",
    "Overloaded",
    "Retries",
    "Segment",
    "SoundError",
    "StorageFailed",
    "Tag",
    "TeachingLimit",
    "TeachingOff",
    "TextTooLong",
    "Unauthorized",
    "UnknownExample",
    "UnknownHead",
    "UnknownModel",
    "Unreachable",
    "UnsupportedMediaType",
    "UploadTimeout",
    "ViolaError",
]
