"""Settings of the online learner, from the environment (HIVEMIND_* and REDIS_URL), which the Trainer hands on."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from hivemind.training.online.precision import Precision


class OnlineSettings(BaseSettings):
    """How the learner learns. Times in seconds of the clock, shares in [0,1], losses in nats of a token."""

    model_config = SettingsConfigDict(env_prefix="HIVEMIND_", extra="ignore", env_ignore_empty=True)

    home: Path = Path(".hivemind")
    datasets: Path = Field(default_factory=lambda data: data["home"] / "datasets")
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", validation_alias="REDIS_URL")
    redis_timeout_s: float = Field(default=2.0, gt=0)
    learn_base: str = "courier"
    learn_base_weights: str = ""
    """A .gguf file or a folder; empty: the courier's own."""
    learn_precision: Precision = "auto"
    """`auto`: bf16 where this CPU is quicker in it, else fp32."""
    learn_threads: int = Field(default=1, ge=1)
    learn_niceness: int = Field(default=10, ge=0, le=19)
    learn_seed: int = Field(default=0, ge=0, lt=1 << 32)

    learn_batch: int = Field(default=8, ge=1, le=64)
    """A batch is closed at so many examples,"""
    learn_wait_s: float = Field(default=30.0, gt=0)
    """or so long after its first."""
    learn_round_s: float = Field(default=25.0, gt=0)
    """How long is learnt before what was learnt is checked, and published if it passes."""
    learn_rank: int = Field(default=16, ge=8, le=256, multiple_of=8)
    """The rank of the adapter where no champion gives one."""
    learn_rate: float = Field(default=1e-3, gt=0, le=1e-2)
    learn_warm_up: int = Field(default=4, ge=0)
    """Steps over which the rate grows at the start."""
    learn_slow: float = Field(default=0.8, ge=0, lt=1)
    """How much of the slow weights, which are those that are published, a step keeps."""
    learn_replay: float = Field(default=0.25, ge=0.1, le=1)
    """Replayed samples a new one, once the first steps are done; it begins with one each."""
    learn_surprise: float = Field(default=0.002, gt=0)
    """An example whose surprise is above this, or whose answer is not foreseen whole, is learnt further,"""
    learn_passes: int = Field(default=40, ge=1)
    """but so often at most."""
    learn_word_dropout: float = Field(default=0.3, ge=0, lt=1)
    """The share of a question's words that are left out in every other rehearsal; names and numbers stay."""
    learn_mastered: float = Field(default=0.97, gt=0, le=1)
    """The share of right answers to what is held out from which on rehearsal beyond right answers ends"""
    learn_enough: int = Field(default=3, ge=1)
    """with so many passes of an example."""
    learn_memory: int = Field(default=2000, ge=8)
    """Examples that are remembered for replay."""
    learn_held_out: int = Field(default=48, ge=1)
    """Examples that are kept back for the gate, at most,"""
    learn_held_out_of: int = Field(default=6, ge=2)
    """one of so many."""
    learn_tenant_share: float = Field(default=0.5, gt=0, le=1)
    """The share of a batch, of the memory and of what is held out that one tenant may have where others teach too."""
    learn_max_tokens: int = Field(default=256, ge=32, le=2048)
    """The longest example that is learnt."""
    learn_outlier: float = Field(default=9.0, gt=0)
    """An example that surprises the champion more than this is no language that it knows, and is not learnt."""

    learn_max_questions: float = Field(default=0.02, ge=0, le=1)
    """By how much the loss on unrelated questions,"""
    learn_max_text: float = Field(default=0.02, ge=0, le=1)
    """on plain text,"""
    learn_max_tenant: float = Field(default=0.02, ge=0, le=1)
    """and on what is held out of any tenant may rise above the champion's, and the last publication's."""
    learn_max_kl: float = Field(default=1.0, gt=0)
    """How far, in nats of a token, predictions on plain text may be from the champion's."""
    learn_min_gain: float = Field(default=0.05, ge=0, lt=1)
    """By how much the held-out loss must fall, if no more answers are exact, for another publication."""
