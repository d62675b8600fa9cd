# ruff: noqa: N818 - the classes bear the names of the HTTP answers, as in every web framework
"""What can go wrong, as a tree: each error has a code, an HTTP status and a sentence.

    ViolaError
    ├── BadRequest              bad_request             422   a parameter is out of range or unknown
    ├── AudioMissing            audio_missing           422   no file, or an empty one
    ├── AudioUnreadable         audio_unreadable        422   not audio, broken off, NaN samples
    ├── AudioTooShort           audio_too_short         422   holds no samples
    ├── AudioTooLong            audio_too_long          413   more seconds than are accepted
    ├── BodyTooLarge            body_too_large          413   more bytes than are accepted
    ├── UploadTimeout           upload_timeout          408   the body came too slowly
    ├── UnsupportedMediaType    unsupported_media_type  415   the body is announced as something else
    ├── UnknownModel            unknown_model           404
    ├── UnknownHead             unknown_head            404
    ├── Unauthorized            unauthorized            401
    ├── Overloaded              overloaded              503   the queue is full; retry_after_s
    ├── DeadlineExceeded        deadline_exceeded       504   waited or computed too long
    ├── InternalError           internal_error          500   our fault; the cause is in the log
    └── ModelFolderError        model_folder            500   a folder that cannot be served

The sentence (`str(error)`) says what was wrong and what would be right; it is the `detail` of the JSON
answer, and the code is its `error` and the label of the metric. ModelFolderError is raised while a model
is loaded and reaches no client by itself.
"""


class ViolaError(Exception):
    """The root. `code`: the word in JSON and metrics; `status`: the HTTP status; `closes`: whether the
    connection ends with the answer, because the rest of the body is not wanted."""

    code = "internal_error"
    status = 500
    closes = False


class BadRequest(ViolaError):
    code = "bad_request"
    status = 422


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


class UnknownHead(ViolaError):
    code = "unknown_head"
    status = 404


class Unauthorized(ViolaError):
    code = "unauthorized"
    status = 401


class Overloaded(ViolaError):
    """The queue is full. `retry_after_s`: when to try again, in seconds."""

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
