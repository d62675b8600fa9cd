# ruff: noqa: N818 - the classes bear the names of the HTTP answers, as in every web framework
"""What can go wrong, as a tree: each error has a code, an HTTP status and a sentence.

    ViolaError
    ├── BadRequest              bad_request             422   a parameter is out of range or unknown
    ├── MalformedHttp           malformed_http          400   the request itself cannot be parsed
    ├── AudioMissing            audio_missing           422   no file, or an empty one
    ├── AudioUnreadable         audio_unreadable        422   not audio, broken off, NaN samples
    ├── AudioTooShort           audio_too_short         422   holds no samples
    ├── AudioTooLong            audio_too_long          413   more seconds than are accepted
    ├── BodyTooLarge            body_too_large          413   more bytes than are accepted
    ├── UploadTimeout           upload_timeout          408   the body came too slowly
    ├── UnsupportedMediaType    unsupported_media_type  415   the body is announced as something else
    ├── UnknownModel            unknown_model           404
    ├── ModelUnavailable        model_unavailable       503   its folder is broken; until it is mended
    ├── UnknownHead             unknown_head            404
    ├── NoText                  no_text                 422   the model has no text tower
    ├── TextTooLong             text_too_long           413   more bytes or tokens than are taken
    ├── AudioSilent             audio_silent            422   nothing can be heard: no example of anything
    ├── UnknownExample          unknown_example         404
    ├── HeadConflict            head_conflict           409   the head is not one that can be taught so
    ├── HeadOutdated            head_outdated           409   taught with another version of the model
    ├── TeachingLimit           teaching_limit          422   more labels, examples or bytes than are kept
    ├── TeachingOff             teaching_off            501   the server has no folder for what is taught
    ├── StorageFailed           storage_failed          507   the disk is full, or cannot be written to
    ├── Unauthorized            unauthorized            401
    ├── Forbidden               forbidden               403   the key is a client's, an admin's is needed
    ├── Overloaded              overloaded              503   the queue is full; retry_after_s
    ├── DeadlineExceeded        deadline_exceeded       504   waited or computed too long
    ├── InternalError           internal_error          500   our fault; the cause is in the log
    └── ModelFolderError        model_folder            500   a folder that cannot be served

The sentence (`str(error)`) says what was wrong and what would be right; it is the `detail` of the JSON
answer, and the code is its `error` and the label of the metric. ModelFolderError is raised while a model
is loaded and reaches no client by itself.

No sentence grows with what a client sent: whatever is repeated of that is `shortened`, and the sentence too.
"""

MAX_ECHO = 80  # characters of what a client sent, in a sentence
MAX_SENTENCE = 1000  # characters


def shortened(text: str, most: int = MAX_ECHO) -> str:
    """`text`, or its first `most` characters and three dots: how everything is repeated that a client sent,
    in answers and in the log."""
    return text if len(text) <= most else f"{text[:most]}..."


class ViolaError(Exception):
    """The root. `code`: the word in JSON and metrics; `status`: the HTTP status; `closes`: whether the
    connection ends with the answer, because the rest of the body is not wanted; `retry_after_s`: when to try
    again, in seconds."""

    code = "internal_error"
    status = 500
    closes = False
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return shortened(super().__str__(), MAX_SENTENCE)


class BadRequest(ViolaError):
    code = "bad_request"
    status = 422


class MalformedHttp(ViolaError):
    code = "malformed_http"
    status = 400


class AudioMissing(ViolaError):
    code = "audio_missing"
    status = 422


class AudioUnreadable(ViolaError):
    code = "audio_unreadable"
    status = 422


class AudioTooShort(ViolaError):
    code = "audio_too_short"
    status = 422


class AudioTooLong(ViolaError):
    code = "audio_too_long"
    status = 413


class BodyTooLarge(ViolaError):
    code = "body_too_large"
    status = 413
    closes = True


class UploadTimeout(ViolaError):
    code = "upload_timeout"
    status = 408
    closes = True


class UnsupportedMediaType(ViolaError):
    code = "unsupported_media_type"
    status = 415


class UnknownModel(ViolaError):
    code = "unknown_model"
    status = 404


class ModelUnavailable(ViolaError):
    code = "model_unavailable"
    status = 503
    retry_after_s = 10.0  # somebody has to come


class UnknownHead(ViolaError):
    code = "unknown_head"
    status = 404


class NoText(ViolaError):
    code = "no_text"
    status = 422


class TextTooLong(ViolaError):
    code = "text_too_long"
    status = 413


class AudioSilent(ViolaError):
    code = "audio_silent"
    status = 422


class UnknownExample(ViolaError):
    code = "unknown_example"
    status = 404


class HeadConflict(ViolaError):
    code = "head_conflict"
    status = 409


class HeadOutdated(ViolaError):
    code = "head_outdated"
    status = 409


class TeachingLimit(ViolaError):
    code = "teaching_limit"
    status = 422


class TeachingOff(ViolaError):
    code = "teaching_off"
    status = 501


class StorageFailed(ViolaError):
    code = "storage_failed"
    status = 507


class Unauthorized(ViolaError):
    code = "unauthorized"
    status = 401


class Forbidden(ViolaError):
    code = "forbidden"
    status = 403


class Overloaded(ViolaError):
    """The queue is full."""

    code = "overloaded"
    status = 503

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ViolaError):
    code = "deadline_exceeded"
    status = 504


class InternalError(ViolaError):
    code = "internal_error"
    status = 500


class ModelFolderError(ViolaError):
    code = "model_folder"
    status = 500
