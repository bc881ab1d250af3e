"""Streams data sets from the hub by Hugging Face `datasets`, at a commit that is fixed once and written down."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hivemind.training.sft_config import HubSource

DEFAULT_MIXTURE: Final = (HubSource("Open-Orca/SlimOrca", 0.5), HubSource("teknium/OpenHermes-2.5", 0.5))
DEFAULT_LIMIT: Final = 20_000
"""Samples of a mixture where the run lays down no limit."""
_SHUFFLE_BUFFER: Final = 10_000


class HubUnavailable(Exception):
    """A data set cannot be had; the text is one sentence with the way without the hub."""


def resolve_revision(source: HubSource) -> str:
    """The commit that a revision stands for now. HubUnavailable where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.name, revision=source.revision, timeout=20).sha
    except Exception as error:  # the client raises what its HTTP library does
        raise _unavailable(source, error) from error
    return commit or source.revision


def stream_hub(source: HubSource, commit: str, seed: int) -> Iterator[Mapping[str, Any]]:
    """The records of a data set, shuffled with a buffer; nothing but the buffer is held."""
    from datasets import load_dataset

    try:
        stream = load_dataset(source.name, revision=commit, split="train", streaming=True)
        yield from stream.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    except Exception as error:  # the client raises what its HTTP library does
        raise _unavailable(source, error) from error


def _unavailable(source: HubSource, error: Exception) -> HubUnavailable:
    cure = "put its files (JSONL or Parquet) on this machine and name them as data paths (--data)"
    return HubUnavailable(f"{source.name} cannot be read from the hub ({type(error).__name__}); {cure}")
