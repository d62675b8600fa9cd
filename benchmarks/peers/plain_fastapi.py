"""The server that one writes in an afternoon: FastAPI, PyTorch and the same encoder, one clip per call.

    uvicorn benchmarks.peers.plain_fastapi:app

Written by the frameworks' documentation: an UploadFile, a plain `def` handler (FastAPI runs it in its thread
pool), soundfile, torchaudio, the network in `inference_mode`, a list of numbers in a declared answer (which
FastAPI serialises several times faster than a bare dict). No batching, no limits, no metrics, no errors.

The weights are random: their values do not change the work. The environment variable TORCH_THREADS sets the
threads of each call; without it torch takes all cores.
"""

import os

import soundfile
import torch
import torchaudio
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel

import encoders

SAMPLE_RATE = 16_000
MEAN, STD = -7.0, 4.0  # of the log-mels of some dataset

if os.environ.get("TORCH_THREADS"):
    torch.set_num_threads(int(os.environ["TORCH_THREADS"]))

app = FastAPI()
model = encoders.build("byola-2022").eval()
melspectrogram = torchaudio.transforms.MelSpectrogram(
    SAMPLE_RATE,
    n_fft=1024,
    hop_length=160,
    f_min=60,
    f_max=7800,
    n_mels=64,
    mel_scale="slaney",
    norm="slaney",
)


class Answer(BaseModel):
    embedding: list[float]


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/embed")
def embed(file: UploadFile) -> Answer:
    samples, rate = soundfile.read(file.file, dtype="float32", always_2d=True)
    with torch.inference_mode():
        waveform = torch.from_numpy(samples).mean(dim=1)
        waveform = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE)
        logmel = torch.log(melspectrogram(waveform) + torch.finfo().eps)
        frames = model((logmel[None, None] - MEAN) / STD)
        return Answer(embedding=model.pool(frames)[0].tolist())
