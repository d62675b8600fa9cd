"""A body of the Open Inference Protocol in, its JSON and the clips of its tensor out; tensors in, a body out.

    JSON alone                           {"inputs": [{"name": "audio", "data": ["<base64>", ...], ...}]}
    the binary extension                 Inference-Header-Content-Length: n
        n bytes of JSON | bytes of the tensors, in the order of the JSON, parameters.binary_data_size of each

    BYTES   each element is its length, 4 bytes little-endian, and so many bytes     encoded files; labels
    FP32    little-endian, row by row                                                samples; vectors; scores

What comes is read from memory or from the temporary file that it was written to, piece by piece, into clips
that count in the budget of uploads. Samples become a file with the header of AU before them, so that they are
decoded, resampled, checked and limited as all files are.
"""

import asyncio
import io
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service.errors import AudioMissing, BadRequest
from service.http.json_body import MAX_JSON_BYTES, SLICE, decoded, in_thread_if_large
from service.http.request_body import SpooledBody, UploadBudget, stream_body
from service.http.responses import PacedResponse, json_bytes, json_response
from service.http.upload import MAX_FILES, Upload, media_type_of, upload_of

HEADER = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
MAX_JSON_VALUES = 1_000_000  # samples in JSON: a minute at 16 kHz; more come as bytes, or as a file
MAX_JSON_PARTS = 2000  # lists and objects, which cost more than numbers: one for each clip, and a few
FLOAT_32 = 6  # of AU

Datatype = Literal["BYTES", "FP32"]


@dataclass(frozen=True)
class InputTensor:
    """A tensor whose elements are still to be read. data: they, where they are in the JSON; n_bytes: how many
    they take behind it, else."""

    name: str
    shape: list[int]
    data: Any
    n_bytes: int | None


@dataclass(frozen=True)
class OutputTensor:
    """elements: FP32 as an array of that shape; BYTES as texts, row by row."""

    name: str
    shape: tuple[int, ...]
    elements: NDArray[np.float32] | Sequence[str]
    is_binary: bool

    @property
    def datatype(self) -> Datatype:
        return "FP32" if isinstance(self.elements, np.ndarray) else "BYTES"

    def encoded(self) -> bytes:
        if isinstance(self.elements, np.ndarray):
            return self.elements.astype("<f4", copy=False).tobytes()
        texts = [text.encode() for text in self.elements]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)


class TensorBody:
    """A body that has been read. To be closed once its clips are taken."""

    def __init__(self, body: SpooledBody) -> None:
        self._body = body
        source = body.source()
        self._file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source
        self._left = body.length

    def close(self) -> None:
        self._body.close()

    async def json(self, n_bytes: int | None) -> dict[str, Any]:
        """The object at its beginning, or that it is. Raises BadRequest."""
        if n_bytes is not None and n_bytes > min(self._left, MAX_JSON_BYTES):
            raise BadRequest(
                f"{HEADER} is {n_bytes}, the body has {self._left} bytes, and its JSON may have "
                f"{MAX_JSON_BYTES}; it is the length of the JSON before the tensors"
            )
        text = self._read(self._left if n_bytes is None else n_bytes)
        return await in_thread_if_large(len(text), _parsed, text)

    async def files(self, tensor: InputTensor) -> list[Upload]:
        """The encoded files of a BYTES tensor."""
        if tensor.n_bytes is None:
            texts = _flat(tensor.data, tensor.name)
            _check_count(tensor, len(texts))
            names = [f"`{tensor.name}[{i}]`" for i in range(len(texts))]
            n_chars = sum(map(len, texts))
            sounds = await in_thread_if_large(n_chars, lambda: list(map(decoded, texts, names)))
            return await self._uploads([_pieces(sound) for sound in sounds])
        lengths = self._elements(tensor)
        return await self._uploads(self._read_in_pieces(length) for length in lengths)

    async def samples(self, tensor: InputTensor, rate_hz: int) -> list[Upload]:
        """The rows of an FP32 tensor as files."""
        n_rows, n_samples = _rows_of(tensor)
        header = b"dns." + struct.pack("<5I", 24, 0xFFFFFFFF, FLOAT_32, rate_hz, 1)
        n_bytes = 4 * n_samples
        if tensor.n_bytes is not None:
            if tensor.n_bytes != n_rows * n_bytes:
                raise BadRequest(
                    f"`{tensor.name}` has {tensor.n_bytes} bytes, and by its shape {n_rows * n_bytes}; send "
                    "float32"
                )
            self._check_left(tensor)
            rows: Iterator[Iterator[bytes]] = (self._read_in_pieces(n_bytes) for _ in range(n_rows))
        else:
            data = await in_thread_if_large(8 * n_rows * n_samples, _float32, tensor)
            rows = (_pieces(data[i * n_bytes : (i + 1) * n_bytes]) for i in range(n_rows))
        return await self._uploads(_after(header, row) for row in rows)

    def check_end(self) -> None:
        """Raises BadRequest where bytes follow that no tensor claims."""
        if self._left:
            raise BadRequest(
                f"{self._left} bytes follow that no tensor claims; each tells its own as "
                "parameters.binary_data_size"
            )

    def _elements(self, tensor: InputTensor) -> Iterator[int]:
        """The length of each element, once all before it are read."""
        self._check_left(tensor)
        n_elements = _n_elements(tensor)
        end, missing = self._left - (tensor.n_bytes or 0), f"`{tensor.name}` ends within an element"
        for _ in range(n_elements):
            if self._left - end < 4:
                raise BadRequest(f"{missing}: its shape tells {n_elements}")
            (length,) = struct.unpack("<I", self._read(4))
            if length > self._left - end:
                raise BadRequest(f"{missing}: of {length} bytes {self._left - end} are there")
            yield length
        if self._left != end:
            raise BadRequest(f"`{tensor.name}` goes on behind the {n_elements} elements of its shape")

    def _check_left(self, tensor: InputTensor) -> None:
        if (tensor.n_bytes or 0) > self._left:
            raise BadRequest(f"`{tensor.name}` has {tensor.n_bytes} bytes, and {self._left} are there")

    def _read(self, n_bytes: int) -> bytes:
        self._left -= n_bytes
        return self._file.read(n_bytes)

    def _read_in_pieces(self, n_bytes: int) -> Iterator[bytes]:
        for start in range(0, n_bytes, SLICE):
            yield self._read(min(SLICE, n_bytes - start))

    async def _uploads(self, sounds: Any) -> list[Upload]:
        """Each an iterable of pieces; they are read one after the other."""
        clips: list[Upload] = []
        try:
            for pieces in sounds:
                clips.append(await _upload_of(pieces, self._body.budget))
            return clips
        except BaseException:
            for clip in clips:
                clip.close()
            raise


async def read_body(request: Request, budget: UploadBudget) -> tuple[dict[str, Any], TensorBody]:
    """The JSON, and the body that it stood in. Raises BadRequest, and as `stream_body` does."""
    media_type_of(request)  # refuses a Content-Encoding
    n_json = _header_length(request)
    body = SpooledBody(budget)
    try:
        await stream_body(request, budget, body.write, max_bytes=MAX_JSON_BYTES if n_json is None else None)
        if body.length == 0:
            raise AudioMissing("the body is empty; send the JSON of the Open Inference Protocol")
        tensors = TensorBody(body)
        return await tensors.json(n_json), tensors
    except BaseException:
        body.close()
        raise


def tensor_response(content: dict[str, Any], outputs: Sequence[OutputTensor]) -> Response:
    """`content` with the outputs in JSON, and behind it the bytes of those that are binary."""
    binary = [output.encoded() if output.is_binary else b"" for output in outputs]
    content["outputs"] = [
        {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        | (
            {"parameters": {"binary_data_size": len(encoded)}}
            if output.is_binary
            else {"data": _in_json(output)}
        )
        for output, encoded in zip(outputs, binary, strict=True)
    ]
    if not any(output.is_binary for output in outputs):
        return json_response(content)
    head = json_bytes(content)
    return PacedResponse(b"".join([head, *binary]), headers={HEADER: str(len(head))}, media_type=OCTETS)


def _in_json(output: OutputTensor) -> Any:
    elements = output.elements
    return np.ascontiguousarray(elements).ravel() if isinstance(elements, np.ndarray) else list(elements)


def _header_length(request: Request) -> int | None:
    written = request.headers.get(HEADER)
    if written is None:
        return None
    if not (written.isascii() and written.isdecimal() and len(written) < 12):
        raise BadRequest(f"{HEADER} is no whole number; it is the length of the JSON before the tensors")
    return int(written)


def _parsed(text: bytes) -> dict[str, Any]:
    n_values = n_parts = 0
    for start in range(0, len(text), SLICE):
        n_values += text.count(b",", start, start + SLICE)
        n_parts += text.count(b"[", start, start + SLICE) + text.count(b"{", start, start + SLICE)
    if n_values > MAX_JSON_VALUES or n_parts > MAX_JSON_PARTS:
        raise BadRequest(
            f"the JSON holds more than {MAX_JSON_VALUES} values or {MAX_JSON_PARTS} lists and objects; send "
            "samples by the binary extension, or encoded files"
        )
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the JSON cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BadRequest("the JSON is no object; it has `inputs`")
    return content


def _flat(data: Any, name: str) -> list[str]:
    """The texts of a list, or of a list of lists."""
    if isinstance(data, list):
        if any(isinstance(each, list) for each in data):
            data = [text for row in data for text in (row if isinstance(row, list) else [row])]
        if all(isinstance(each, str) for each in data):
            return data
    raise BadRequest(f"the data of `{name}` is a list of files in base64, or comes as bytes behind the JSON")


def _n_elements(tensor: InputTensor) -> int:
    n = math.prod(tensor.shape)
    if n == 0:
        raise AudioMissing(f"`{tensor.name}` is empty by its shape; it holds at least one sound")
    if n > MAX_FILES:
        raise BadRequest(f"`{tensor.name}` holds more than {MAX_FILES} sounds; send several requests")
    return n


def _check_count(tensor: InputTensor, n: int) -> None:
    if _n_elements(tensor) != n:
        raise BadRequest(f"`{tensor.name}` has {n} elements, and by its shape {_n_elements(tensor)}")


def _rows_of(tensor: InputTensor) -> tuple[int, int]:
    """(clips, samples of each) by the shape."""
    *rows, n_samples = tensor.shape
    n_rows = math.prod(rows)
    if n_rows == 0 or n_samples == 0:
        raise AudioMissing(f"`{tensor.name}` is empty by its shape; it holds at least one sample")
    if n_rows > MAX_FILES:
        raise BadRequest(f"`{tensor.name}` holds more than {MAX_FILES} sounds; send several requests")
    return n_rows, n_samples


def _float32(tensor: InputTensor) -> bytes:
    """The numbers of a list, which may be nested as the shape is. What is not finite is the decoder's to
    refuse."""
    try:
        with np.errstate(over="ignore"):
            values = np.array(tensor.data, dtype="<f4")
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"the data of `{tensor.name}` is no list of numbers, or its rows differ") from error
    expected = math.prod(tensor.shape)
    if values.size != expected or values.ndim == 0:
        raise BadRequest(f"`{tensor.name}` has {values.size} elements, and by its shape {expected}")
    return values.tobytes()


def _pieces(sound: bytes) -> Iterator[bytes]:
    for start in range(0, len(sound), SLICE):
        yield sound[start : start + SLICE]


def _after(header: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield header
    yield from pieces


async def _upload_of(pieces: Iterator[bytes], budget: UploadBudget) -> Upload:
    """One that counts in the budget."""
    body = SpooledBody(budget)
    try:
        for piece in pieces:
            body.write(piece)
            if len(piece) == SLICE:
                await asyncio.sleep(0)  # others run between two writes to the disk
        return upload_of(body)
    except BaseException:
        body.close()
        raise
