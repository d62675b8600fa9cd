"""Words of a command line in, checked values out: types for argparse, which prints their sentences."""

import argparse
import math

import torch


def positive_int(text: str) -> int:
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return number


def positive_float(text: str) -> float:
    number = float_or_nan(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return number


def positive_floats(text: str) -> tuple[float, ...]:
    return tuple(map(positive_float, text.split(",")))


def seconds(text: str) -> float:
    number = float_or_nan(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds from 0 on")
    return number


def float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def seeds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers such as 42,43,44")
    return tuple(map(int, words))


def counts(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers from 1 on, such as 1,3,5")
    return tuple(map(int, words))


def device(text: str) -> str:
    if text not in ("auto", "cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"'{text}' is none of auto, cpu and cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("torch finds no CUDA GPU on this machine: take cpu or auto")
    return text
