"""Runs of one process among several: whole, overheard, or with a callback that waits or raises."""

import os
import tempfile
import time

from transformers import TrainerCallback

from moe_codegen.training import train


class Stopped(Exception):
    pass


class Slow(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        time.sleep(0.3)


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            raise Stopped


def train_slowly(settings, out):
    train(settings, out, callbacks=[Slow()])


def train_until(settings, out, step):
    try:
        train(settings, out, callbacks=[Stop(step)])
    except Stopped:
        return
    raise AssertionError(f"it ended before step {step}")


def train_whole(settings, out):
    return train(settings, out)


def train_heard(settings, out):
    """The lines of this process on standard error, those of torch's C++ included."""
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        train(settings, out)
        heard.seek(0)
        return heard.read().decode().splitlines()
