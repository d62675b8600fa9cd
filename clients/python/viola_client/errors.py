# ruff: noqa: N818 - the classes bear the names of the server's errors
"""What can go wrong, one class for each code of the server.

    ViolaError
    ├── BadRequest, AudioMissing, AudioUnreadable, AudioTooShort, AudioTooLong, BodyTooLarge,
    │   UnsupportedMediaType, UnknownModel, UnknownHead, NoText, TextTooLong, Unauthorized, Forbidden,
    │   AudioSilent, UnknownExample, HeadConflict, HeadOutdated, TeachingLimit, TeachingOff,
    │   UploadTimeout, MalformedHttp                                                     mend the request
    ├── StorageFailed                                            the server's disk is full, or broken
    ├── Overloaded, ModelUnavailable, DeadlineExceeded, InternalError                    try again later
    ├── Unreachable                                                                      no answer at all
    └── SoundError                                                      what was given is no sound, or no file

`str(error)` is a sentence, the server's or, of the last two, the client's: what was wrong and what would be
right.
"""

from __future__ import annotations


class ViolaError(Exception):
    """`code`: the server's word for it; `status`: the HTTP status, 0 where there was no answer."""

    code = ""

    def __init__(self, detail: str, *, code: str | None = None, status: int = 0) -> None:
        super().__init__(detail)
        self.code = code if code is not None else type(self).code
        self.status = status


class BadRequest(ViolaError):
    code = "bad_request"


class AudioMissing(ViolaError):
    code = "audio_missing"


class AudioUnreadable(ViolaError):
    code = "audio_unreadable"


class AudioTooShort(ViolaError):
    code = "audio_too_short"


class AudioTooLong(ViolaError):
    code = "audio_too_long"


class BodyTooLarge(ViolaError):
    code = "body_too_large"


class UnsupportedMediaType(ViolaError):
    code = "unsupported_media_type"


class UnknownModel(ViolaError):
    code = "unknown_model"


class ModelUnavailable(ViolaError):
    code = "model_unavailable"


class UnknownHead(ViolaError):
    code = "unknown_head"


class NoText(ViolaError):
    code = "no_text"


class TextTooLong(ViolaError):
    code = "text_too_long"


class AudioSilent(ViolaError):
    code = "audio_silent"


class UnknownExample(ViolaError):
    code = "unknown_example"


class HeadConflict(ViolaError):
    code = "head_conflict"


class HeadOutdated(ViolaError):
    code = "head_outdated"


class TeachingLimit(ViolaError):
    code = "teaching_limit"


class TeachingOff(ViolaError):
    code = "teaching_off"


class StorageFailed(ViolaError):
    code = "storage_failed"


class Unauthorized(ViolaError):
    code = "unauthorized"


class Forbidden(ViolaError):
    code = "forbidden"


class MalformedHttp(ViolaError):
    code = "malformed_http"


class UploadTimeout(ViolaError):
    code = "upload_timeout"


class Overloaded(ViolaError):
    code = "overloaded"


class DeadlineExceeded(ViolaError):
    code = "deadline_exceeded"


class InternalError(ViolaError):
    code = "internal_error"


class Unreachable(ViolaError):
    """The server could not be reached, or the connection broke before it answered."""

    code = "unreachable"


class SoundError(ViolaError):
    """What was given is no sound, or its file cannot be read; `__cause__` is the system's error, if there was
    one."""

    code = "sound"


BY_CODE: dict[str, type[ViolaError]] = {kind.code: kind for kind in ViolaError.__subclasses__()}


def error_of(status: int, answer: object) -> ViolaError:
    """The error that an answer tells: `{"error": code, "detail": sentence}`, or whatever a proxy sent."""
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        code = answer["error"]
        kind = BY_CODE.get(code, ViolaError)
        return kind(str(answer.get("detail", code)), code=code, status=status)
    return ViolaError(
        f"the server answered {status}, not in viola's form: is a proxy between?", status=status
    )
