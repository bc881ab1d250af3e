"""Settings of the trainer server."""

from pydantic import Field

from hivemind.servers.common.settings import ServerSettings


class TrainerSettings(ServerSettings):
    """What every server has, and how jobs are run. Times in seconds, prices in micro-USD an hour."""

    grpc_port: int = 7105
    metrics_port: int = 7205
    train_poll_s: float = Field(default=0.5, gt=0)
    train_lease_s: float = Field(default=15.0, gt=0)
    """How long a Trainer that does not renew it keeps a job."""
    train_abandoned_s: float = Field(default=600.0, gt=0)
    """After how long the jobs of a machine that is not seen any more go to others."""
    train_grace_s: float = Field(default=8.0, gt=0)
    """How long a job may take to write its checkpoint before it is killed."""
    train_stall_s: float = Field(default=600.0, gt=0)
    """How long a job may give no sign of life."""
    train_max_crashes: int = Field(default=3, gt=0)
    train_retry_s: float = Field(default=5.0, ge=0)
    """How long after its first crash a job is started again; the time doubles."""
    train_check_s: float = Field(default=60.0, gt=0)
    """How long the check of a new job's data may take."""
    train_max_queued: int = Field(default=100, gt=0)
    train_cpu_jobs: int = Field(default=1, ge=0)
    train_gpu_jobs: int = Field(default=1, ge=0)
    train_gpu_free_mib: int = Field(default=8192, ge=0)
    """GPU memory that has to be free before a job starts on it."""
    train_room_s: float = Field(default=30.0, gt=0)
    """After how long is looked again where there was too little."""
    train_watch_patience_s: float = Field(default=30.0, gt=0)
    """How long a watch outlives an absent store."""
    challenger_traffic: float = Field(default=0.01, ge=0, le=0.5)
    """The share of its role's traffic that a new adapter begins to challenge with; 0: it waits for an operator."""
    train_niceness: int = Field(default=10, ge=0, le=19)
    train_cpu_price_per_hour_micros: int = Field(default=0, ge=0)
    train_gpu_price_per_hour_micros: int = Field(default=0, ge=0)
    learn: bool = True
    """Whether this Trainer runs the online learner; examples are taken in any case."""
    learn_poll_s: float = Field(default=0.5, gt=0)
    learn_lease_s: float = Field(default=15.0, gt=0)
    """How long a Trainer that does not renew it keeps the learner."""
    learn_retry_s: float = Field(default=2.0, ge=0)
    """How long after it ended unasked the learner is started again; the time doubles."""
    learn_champion_s: float = Field(default=2.0, gt=0)
    """How often is looked who is champion."""
    learn_grace_s: float = Field(default=7.0, gt=0)
    """How long the learner may take to save its state when it is to end."""
    learn_trial_s: float = Field(default=120.0, ge=0)
    """How long after its publication a version of the learner goes on challenging though newer ones come. The eldest
    such version and the newest one challenge; those between them are retired. 0: the newest alone."""
    learn_shadow: bool = False
    """Whether a new version only answers in the background, instead of having `challenger_traffic`."""
    learn_inbox: int = Field(default=10_000, gt=0)
    """Most examples that wait for the online learner."""
    learn_inbox_share: float = Field(default=0.5, gt=0, le=1)
    """The share of them that may be one tenant's."""
    learn_patience: int = Field(default=8, ge=0)
    """How many unchecked examples of a tenant checked answers of others must contradict, and more than they confirm,
    before none of its unchecked ones is learnt. 0: however many, they are."""
    learn_max_example_bytes: int = Field(default=16_384, gt=0)
