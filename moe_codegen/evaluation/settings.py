"""What an evaluation may be told; each field is a flag of the command line."""

import os
from dataclasses import dataclass

from moe_codegen.errors import ConfigError
from moe_codegen.generation.completion import check_sampling
from moe_codegen.generation.loading import usable_device
from moe_codegen.settings import setting

LANGUAGES = ("python", "java", "javascript", "cpp")


@dataclass(frozen=True)
class ProblemSettings:
    """Which problems."""

    dataset: str = setting("humaneval", "humaneval, mbpp; humaneval_original, mbpp_original (Python only)")
    languages: tuple[str, ...] = setting(LANGUAGES, "python, java, javascript, cpp or typescript; may be given again")
    problems: str | None = setting(
        None, "local .jsonl or .parquet file, or folder of them; otherwise the Hub", is_path=True
    )
    limit: int = setting(0, "problems of each language at most, the first ones; 0: all")

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"limit={self.limit} must not be negative; 0 takes all problems")


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn. The same seed gives a sample the same noise, whatever the batch size."""

    num_samples: int = setting(20, "completions of each problem")
    temperature: float = setting(0.2, "0 takes the likeliest token each time")
    top_p: float = setting(0.95, "sample from the likeliest tokens of this probability")
    max_tokens: int = setting(512, "tokens of a completion at most")
    seed: int = setting(0, "of the sampling")
    strip_prompts: bool = setting(True, "prompt without white space around it, as MultiPL-E does")
    truncate_prompts: bool = setting(False, "keep the end of a prompt that is too long for the model")

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.max_tokens < 1:
            raise ConfigError(f"num_samples={self.num_samples} and max_tokens={self.max_tokens} must be at least 1")
        check_sampling(self.temperature, self.top_p)
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                f"num_samples={self.num_samples} at temperature 0 would be all the same; ask for one, "
                "or give a temperature"
            )


@dataclass(frozen=True)
class ModelSettings:
    """How the model is run; none of it should change what it writes, but for rounding."""

    batch_size: int = setting(16, "completions written at a time")
    dtype: str | None = setting(None, "float32, bfloat16 or float16; otherwise the checkpoint's")
    device: str | None = setting(None, "such as cpu or cuda:1; otherwise the accelerator")

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size} must be at least 1")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype={self.dtype!r} is none of float32, bfloat16, float16")
        usable_device(self.device)


@dataclass(frozen=True)
class ExecutionSettings:
    """How programs are run."""

    workers: int = setting(0, "programs at a time; 0: one for each core that may be used")
    sandbox: str = setting("bubblewrap", "bubblewrap; none runs programs with all your rights")
    memory_mb: int = setting(1024, "MiB that one program may use")

    def __post_init__(self) -> None:
        if self.workers < 0 or self.memory_mb < 64:
            raise ConfigError(f"workers={self.workers} must not be negative, memory_mb={self.memory_mb} at least 64")

    @property
    def num_workers(self) -> int:
        """Programs at a time: of the cores that this process may use, where nothing else is asked for."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers or usable


@dataclass(frozen=True)
class MeasureSettings:
    """Which held-out files, and how much of each."""

    languages: tuple[str, ...] = setting(LANGUAGES, "languages to measure; may be given again")
    documents: int = setting(200, "files of each language at most")
    per_repository: int = setting(10, "files of one repository at most")
    characters: int = setting(8000, "of each file at most, in whole lines")
    window: int | None = setting(None, "tokens the model sees at once; otherwise its positions, up to 2048")
    batch_tokens: int = setting(4096, "tokens that go through the model together")
    places: int = setting(1, "lines of each file to complete")
    context: int = setting(512, "tokens of prompt for a line at most")
    max_new_tokens: int = setting(48, "tokens of a completed line at most")
    seed: int = setting(0, "of the choice of files and lines")

    def __post_init__(self) -> None:
        least = {"documents": 1, "per_repository": 1, "characters": 1, "batch_tokens": 1, "context": 8}
        for name, bound in {**least, "max_new_tokens": 1, "places": 0}.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {bound}")
        if not self.languages:
            raise ConfigError("no language to measure; name at least one")


@dataclass(frozen=True)
class RunSettings:
    """Everything that `evaluate run` may be told; what two of the parts share is one flag."""

    problems: ProblemSettings = ProblemSettings()
    sampling: SamplingSettings = SamplingSettings()
    model: ModelSettings = ModelSettings()
    execution: ExecutionSettings = ExecutionSettings()
    measure: MeasureSettings = MeasureSettings()
    held_out: str | None = setting(
        None, "files to measure on: OUT/validation of `data split`, or repositories; none: programs alone", is_path=True
    )
