"""Loaders that a worker imports by name."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn


class Chatty(nn.Module):
    """Prints on every call, as engines do, in Python and below it."""

    def forward(self, x):
        print("to stdout")
        sys.stderr.write("to stderr\n")
        os.write(1, b"straight to the file\n")
        return x * 2


class Hang(nn.Module):
    def forward(self, x):
        time.sleep(600)
        return x


class Die(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "exit":
            sys.stderr.write("the last words\n")
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, self.how))
        return x


def chatty(path: Path) -> nn.Module:
    return Chatty()


def linear(path: Path, width: int) -> nn.Module:
    return nn.Linear(width, width)


def hang(path: Path) -> nn.Module:
    if path.name != "-":
        path.write_text(f"{os.getpid()} {os.getppid()}\n")
    return Hang()


def die(path: Path, how: str) -> nn.Module:
    return Die(how)


def wrong(path: Path) -> nn.Module:
    raise ValueError(f"no such layer in {torch.__name__}")
